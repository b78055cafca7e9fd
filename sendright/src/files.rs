//! A file service made of objects: directories, files and links that are called, and nothing that is named
//! from outside.
//!
//! It owns the way each of them is spoken to ([`wire`]), the side that has them ([`server`]) and the side
//! that only holds them ([`client`]). It must never know who runs it or why: processes, locators, reports and
//! progress are the affair of commands.
//!
//! A **directory** is a session object ([`seqpacket::Object`]): many calls at once, one connection per
//! holder. Whatever is asked names something beneath it. A **file**, a **link** and a **draft** are plain
//! objects ([`seqpacket::PlainObject`]): one message, one answer, and in the answer, where that was asked
//! for, the opened descriptor. Whoever holds a directory reaches what is below it and nothing beside or above
//! it. What may only be read is another object, and so is what can be taken back.

pub mod client;
pub mod server;
#[cfg(test)]
mod tests;
pub mod wire;
