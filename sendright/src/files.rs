//! A file service made of objects: directories and files that are called, and nothing that is named from
//! outside.
//!
//! It owns the way a directory and a file are spoken to ([`wire`]), the side that has them ([`server`]) and
//! the side that only holds them ([`client`]). It must never know who runs it or why: processes, reports and
//! progress are the demonstration's affair.
//!
//! A **directory** is a session object ([`seqpacket::Object`]): many calls at once, one connection per
//! holder. It lists itself by the page, reads its symbolic links, and opens its leaves. A **file** is a plain
//! object ([`seqpacket::PlainObject`]): one message, one answer, and in the answer the opened descriptor.
//! Whoever holds a directory reaches what is below it and nothing beside or above it.

pub mod client;
pub mod server;
pub mod wire;
