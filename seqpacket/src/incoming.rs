//! A call that arrived at an object with sessions.
//!
//! It owns the message, what nobody has taken of it, and the continuation. It does not know where calls wait
//! or whose turn it is.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use bytemuck::AnyBitPattern;
use ring::{Credentials, Message, Reactor};

use crate::brought::Brought;
use crate::continuation::Continuation;
use crate::error::AnswerError;
use crate::mailbox::Grant;
use crate::object::Object;
use crate::served::Served;
use crate::trace::CallSpan;

/// A call that arrived: a message, who sent it, and where to answer.
#[derive(Debug)]
pub struct Incoming {
    brought: Box<Brought>,
    continuation: Continuation,
}

impl Incoming {
    #[inline]
    pub(crate) fn new(served: Rc<Served>, brought: Box<Brought>) -> Incoming {
        let Brought { number, room, deadline, .. } = *brought;
        let pid = served.session().client().credentials.pid;
        let span = CallSpan::served(number, brought.parcel.bytes().len(), pid);
        let continuation = Continuation::new(served, number, room, deadline, span);
        Incoming { brought, continuation }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.brought.parcel.bytes()
    }

    /// The bytes as plain data, if there are exactly as many as `T` has.
    pub fn read<T: AnyBitPattern>(&self) -> Option<T> {
        self.brought.parcel.read()
    }

    /// How many descriptors have not been taken yet.
    pub fn descriptors(&self) -> usize {
        self.brought.parcel.descriptors()
    }

    /// Takes the first descriptor that has not been taken yet.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.brought.parcel.take_descriptor()
    }

    /// Takes all descriptors that have not been taken yet, in order.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.brought.parcel.take_descriptors()
    }

    /// Takes the first descriptor that has not been taken yet as an object with sessions, which it is if the
    /// caller says so. `None` if there is none, or if it cannot be one; then it is closed.
    pub fn take_object(&mut self, reactor: &Reactor) -> Option<Object> {
        self.brought.parcel.take_descriptor().and_then(|fd| Object::from_fd(reactor, fd).ok())
    }

    /// Whether the caller attached through this granted address, or one of its copies.
    pub fn came_through(&self, grant: &Grant) -> bool {
        let session = self.continuation.session();
        session.is_of(&grant.mailbox) && session.client().address == grant.address
    }

    /// The grant through which the caller attached, to tell callers apart or to take it back; `None` for
    /// those who hold the object's first address, and when the mailbox is gone.
    pub fn grant(&self) -> Option<Grant> {
        let session = self.continuation.session();
        let address = session.client().address;
        let mailbox = session.mailbox().upgrade()?;
        mailbox.is_grant(address).then(|| Grant { mailbox: Rc::downgrade(&mailbox), address })
    }

    /// Who attached the session this came on, as the kernel told at that moment. Every holder of the session
    /// may have sent the call. Where the kernel did not tell (an attach queued before the mailbox was made
    /// from an inherited descriptor), process 0 and the user and group 4294967295, who is nobody.
    pub fn credentials(&self) -> Credentials {
        self.continuation.session().client().credentials
    }

    /// When the caller gives up, if it [has said](crate::CallOptions::within): reckoned from the moment at
    /// which the call was received, so that what it waited in the kernel's queue is not subtracted. A call
    /// whose time was over before it was taken is not handed out, and its caller is told
    /// [`CallError::Expired`](crate::CallError::Expired).
    ///
    /// A handler passes it on with the calls that it makes itself:
    ///
    /// ```
    /// # use seqpacket::{Incoming, Object};
    /// use seqpacket::CallOptions;
    ///
    /// async fn relay(call: Incoming, to: &Object) {
    ///     let answer = to.call_with(call.bytes(), CallOptions::until(call.deadline())).await;
    ///     if let Ok(answer) = answer {
    ///         let _ = call.answer(answer.into_bytes());
    ///     }
    /// }
    /// ```
    pub fn deadline(&self) -> Option<Instant> {
        self.continuation.deadline()
    }

    /// Answers. See [`Continuation::answer`].
    ///
    /// # Errors
    /// See [`AnswerError`].
    #[inline]
    pub fn answer(self, message: impl Into<Message>) -> Result<(), AnswerError> {
        let Incoming { brought, mut continuation } = self;
        let result = continuation.answer_in_place(&mut message.into());
        continuation.session().take_back(brought);
        result
    }

    /// Refuses as a matter of policy: the caller is told that its call was not handled.
    pub fn refuse(self) {
        self.into_continuation().refuse();
    }

    /// Where to answer, apart from the message.
    pub fn into_continuation(self) -> Continuation {
        let Incoming { brought, continuation } = self;
        continuation.session().take_back(brought);
        continuation
    }

    /// Bytes, descriptors and where to answer, apart.
    pub fn into_parts(mut self) -> (Vec<u8>, Vec<OwnedFd>, Continuation) {
        let mut parcel = std::mem::take(&mut self.brought.parcel);
        let descriptors = parcel.take_descriptors();
        (parcel.into_bytes(), descriptors, self.into_continuation())
    }

    /// The continuation, to look at.
    pub fn continuation(&self) -> &Continuation {
        &self.continuation
    }
}
