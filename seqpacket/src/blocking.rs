//! Objects called without a reactor: the same calls and the same outcomes, waited for where they are made.
//!
//! ```
//! use seqpacket::blocking::Object;
//! # use ring::{Executor, Reactor};
//! # let (bound, address) = imc::blocking::bound_socket()?;
//! # let (bound, address) = (bound.into_fd(), address.into_fd());
//! # let server = std::thread::spawn(move || {
//! #     let reactor = Reactor::new().unwrap();
//! #     let mailbox = seqpacket::Mailbox::from_fd(&reactor, bound).unwrap();
//! #     Executor::new(&reactor).block_on(async {
//! #         while let Some(call) = mailbox.next().await {
//! #             let greeting = format!("hello, {}", String::from_utf8_lossy(call.bytes()));
//! #             let _ = call.answer(greeting);
//! #         }
//! #     });
//! # });
//! // The address came in a message, or was inherited.
//! let greeter = Object::from_fd(address)?;
//! assert_eq!(greeter.call("world")?.bytes(), b"hello, world");
//! # drop(greeter);
//! # server.join().unwrap();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Which client for whom
//!
//! | | waits | several calls at a time |
//! |---|---|---|
//! | [`Object`](crate::Object) on a reactor of its own | in `block_on` | all that there is room for |
//! | the same on a guest | in the loop of its host | the same |
//! | [`blocking::Object`](Object) | where it is called | by [`call_many`](Object::call_many) |
//!
//! - A reactor of its own ([`ring::Reactor`]) is for servers, and programs whose main loop is ours to have.
//! - A guest is for programs that have a loop: epoll, tokio, a toolkit's.
//! - A blocking object is for programs without one: command lines, threads, libraries in somebody else's
//!   process, and whoever waits for one answer and nothing else.
//!
//! A call and its answer are two system calls here, `sendmsg` and `recvmsg`, and nothing is faster for one
//! call at a time. With many at a time a reactor is.
//!
//! # Threads
//!
//! Handles are `Send` and belong to one thread at a time. Give each thread its own
//! ([`Object::try_clone`]): it has a session of its own, and nobody waits for anybody. No lock is taken, no
//! thread is started (but for closing a stranger's descriptor that may be slow, see [`ring::discard`]), no
//! signal handler is installed, SIGPIPE is never raised, and nothing is global but one page by which a fork
//! is noticed ([`ring::fork`]). So a library can use this in a process that it does not own.
//!
//! # Forks
//!
//! A session belongs to the process that attached it. A forked child that uses an inherited handle closes its
//! copy of the session, which ends nothing, and attaches anew with its next call. The parent's calls notice
//! nothing. What the parent had [begun](Object::begin) ends in the child with [`CallError::Dropped`]: its
//! answers go to the parent. A child that never touches the handle keeps its copy open for as long as it
//! lives; the parent's dropping ends the session all the same (it is shut down), but not the parent's death.
//! The same child keeps copies of pairs that had [come home](PlainObject::with_returned_pairs), and hides the
//! death of whoever answers the parent's calls with them.
//!
//! # What differs from a reactor
//!
//! - Nobody reads while the program does not wait: the goodbye of a server that leaves, or its death, is
//!   noticed by the next call. [`call`](Object::call) then attaches anew and calls again by itself, if it is
//!   certain that nobody has seen the call; others end with [`CallError::Gone`].
//! - Answers to calls that were withdrawn are swallowed by later calls.
//! - There is no budget of descriptors. With none left an answer is [`CallError::DescriptorsLost`].
//! - A large call is sent, all of it, before [`begin`](Object::begin) returns. And a large answer needs
//!   somebody who reads: a server ends the session of a client that takes none of it for
//!   [some time](crate::LARGE_STALL_MAX). Calls that ask for one are not to be begun and then forgotten.
//! - That a large answer [stands still](crate::ObjectOptions::large_stall) is noticed by who waits for it.
//!
//! It does not serve objects: see [`Mailbox`](crate::Mailbox).
//!
//! [`CallError::Dropped`]: crate::CallError::Dropped
//! [`ObjectOptions::large_stall`]: crate::ObjectOptions::large_stall
//! [`CallError::Gone`]: crate::CallError::Gone
//! [`CallError::DescriptorsLost`]: crate::CallError::DescriptorsLost

mod answer;
mod object;
mod plain;
mod session;

pub use ring::blocking::Outgoing;

pub use answer::Answer;
pub use object::{Object, Pending};
pub use plain::{PlainObject, PlainPending};
