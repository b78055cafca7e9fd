//! The driver of a forked child: whatever is asked of it comes home refused, and nothing is touched.
//!
//! The ring, the epoll and the sockets are the parent's, who goes on using them. It owns the list of what it
//! has refused; it makes no system call, and it must never be what a reactor starts with.

use std::io;

use crate::fork::ForkedChild;
use crate::request::{Completion, Requests, Token};

#[derive(Default)]
pub(crate) struct Child {
    refused: Vec<Token>,
}

impl Child {
    pub(crate) fn submit(&mut self, token: Token) {
        self.refused.push(token);
    }

    /// Brings home what was submitted since the last turn.
    pub(crate) fn turn(&mut self, requests: &mut Requests, home: &mut Vec<Completion>) {
        home.extend(self.refused.drain(..).filter_map(|token| {
            let outcome = requests.find(token)?.failed(refusal());
            Some(Completion { token, outcome, last: true })
        }));
    }
}

/// What is said in a child instead of doing it.
pub(crate) fn refusal() -> io::Error {
    ForkedChild.into()
}
