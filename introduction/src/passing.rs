//! Passing a descriptor, also while this user has as many in flight as the kernel allows one.
//!
//! Those in flight may be anybody's of the same user, and what was said before the descriptor cannot be taken
//! back: without it the connection would be of no use any more, for something that neither side did. So it is
//! tried again. It does not know for how long; that is for whoever waits.

use std::time::Duration;

use ring::{Fd, Message, SendError, Socket};

/// After a descriptor could not leave.
const PAUSE: Duration = Duration::from_millis(10);

/// Sends these bytes with the descriptor.
pub(crate) async fn pass(socket: &Socket, bytes: &[u8], fd: Fd) -> Result<(), SendError> {
    loop {
        let message = Message::from(bytes).with_descriptor(fd.clone());
        match socket.send(message).await {
            Err(SendError::OutOfDescriptors) => socket.reactor().sleep(PAUSE).await,
            sent => return sent,
        }
    }
}
