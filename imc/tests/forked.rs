//! Connecting and accepting in a forked child: refused by name, and the parent's connections go on.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use imc::{
    AcceptError, ConfirmError, ConnectError, ConnectedSocket, TypedMessage, TypedReceiveError,
    TypedSendError, TypedSocket, bound_socket,
};
use ring::{Executor, Reactor, SendError};
use testing::{fork, on_each_driver, settle};

/// Long enough for everything.
const LONG: Duration = Duration::from_secs(60);

on_each_driver! {
    fn connecting_and_accepting_are_refused(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = bound_socket(reactor).unwrap();
        fork(|| {
            assert!(matches!(executor.block_on(address.connect()), Err(ConnectError::Forked)));
            assert!(matches!(address.try_connect(), Err(ConnectError::Forked)));
            let confirmed = executor.block_on(address.connect_confirmed(LONG));
            assert!(matches!(confirmed, Err(ConfirmError::Connect(ConnectError::Forked))));
            for _ in 0..2 {
                assert!(matches!(executor.block_on(bound.accept()), Err(AcceptError::Forked)));
            }
        })
        .succeeded();
        let near = executor.block_on(address.connect()).unwrap();
        let far = executor.block_on(bound.accept()).unwrap().socket;
        executor.block_on(near.send("hello")).unwrap();
        assert_eq!(executor.block_on(far.receive()).unwrap().bytes(), b"hello");
    }

    fn accepting_one_at_a_time_is_refused_too(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = bound_socket(reactor).unwrap();
        let _near = address.try_connect().unwrap();
        fork(|| {
            assert!(matches!(executor.block_on(bound.accept_one()), Err(AcceptError::Forked)));
        })
        .succeeded();
        executor.block_on(bound.accept_one()).unwrap();
    }

    fn a_confirmation_that_is_under_way_is_the_parents(reactor: &Reactor) {
        let executor = Executor::new(reactor);
        let (bound, address) = bound_socket(reactor).unwrap();
        bound.set_confirming(true);
        let mut connecting = Box::pin(address.connect_confirmed(LONG));
        testing::poll_once(connecting.as_mut());
        executor.settle();
        fork(|| {
            assert!(matches!(executor.block_on(connecting.as_mut()), Err(ConfirmError::Forked)));
        })
        .succeeded();
        executor.spawn(async move { drop(bound.accept().await) });
        executor.block_on(connecting).unwrap();
    }

    fn typed_messages_are_refused(reactor: &Reactor) {
        let (near, far) = ConnectedSocket::pair(reactor).unwrap();
        let far = ConnectedSocket::from_fd(reactor, far).unwrap();
        let (near, far) = (TypedSocket::new(near).unwrap(), TypedSocket::new(far).unwrap());
        fork(|| {
            let sent = settle(reactor, near.send(TypedMessage::new(b"no")));
            assert!(matches!(sent, Err(TypedSendError::Send(SendError::Forked))));
            assert!(matches!(settle(reactor, near.receive()), Err(TypedReceiveError::Forked)));
        })
        .succeeded();
        settle(reactor, near.send(TypedMessage::new(b"yes"))).unwrap();
        assert_eq!(settle(reactor, far.receive()).unwrap().data, b"yes");
    }
}
