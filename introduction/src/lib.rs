//! Strangers meet: two programs that know each other only by their keys get a private socket from a server
//! they both trust, and the server steps out.
//!
//! So far the data format of its records. It does not open any socket.
#![forbid(unsafe_code)]

pub mod syrup;
