//! Plash's protocol across two processes: what it answers, what it drops, and how its connection ends.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use benches::plash::{self, CallError, Caller, ECHO, Malformed, OPEN};
use rustix::net::SendFlags;
use testing::{helper, in_own_process, start_helper, stream_pair};

helper! {
    fn service(descriptors: Vec<OwnedFd>) {
        let [socket] = descriptors.try_into().unwrap();
        plash::serve(socket, plash::echo_and_open).unwrap();
    }

    fn breaks_off(descriptors: Vec<OwnedFd>) {
        let [socket] = descriptors.try_into().unwrap();
        let mut heard = [0; 256];
        rustix::io::read(&socket, &mut heard).unwrap();
        // Half an answer.
        rustix::net::send(&socket, b"MSG!\x10\0\0\0", SendFlags::NOSIGNAL).unwrap();
    }

    fn answers_whom_nobody_asked_for(descriptors: Vec<OwnedFd>) {
        let [socket] = descriptors.try_into().unwrap();
        let mut heard = [0; 256];
        rustix::io::read(&socket, &mut heard).unwrap();
        let stranger = plash::wire::Id { index: 9, namespace: plash::wire::Namespace::Receiver };
        let mut bytes = Vec::new();
        plash::wire::write_invocation(&mut bytes, stranger, 0, &[b"you?"]);
        rustix::net::send(&socket, &bytes, SendFlags::NOSIGNAL).unwrap();
    }

    fn drops_by_the_other_message(descriptors: Vec<OwnedFd>) {
        let [socket] = descriptors.try_into().unwrap();
        let mut heard = [0; 256];
        rustix::io::read(&socket, &mut heard).unwrap();
        let asker = plash::wire::Id { index: 0, namespace: plash::wire::Namespace::Receiver };
        let mut bytes = Vec::new();
        plash::wire::write_drop(&mut bytes, asker);
        rustix::net::send(&socket, &bytes, SendFlags::NOSIGNAL).unwrap();
    }
}

in_own_process! {
    fn an_echo_comes_back() {
        let (near, far) = stream_pair();
        let helper = start_helper!(service, vec![far]);
        let mut caller = Caller::new(near);
        for length in [0, 1, 3, 64, 65_536, 200_000] {
            let said = vec![7; length];
            assert_eq!(caller.call(ECHO, &[&said]).unwrap().data, said);
        }
        drop(caller);
        helper.succeeded();
    }

    fn calls_under_way_together_each_have_their_answer() {
        let (near, far) = stream_pair();
        let helper = start_helper!(service, vec![far]);
        let mut caller = Caller::new(near);
        let mut begun: Vec<u32> = (0..32_u32)
            .map(|call| caller.begin(ECHO, &[&call.to_ne_bytes()]).unwrap())
            .collect();
        for call in 0..32_u32 {
            let (number, answer) = caller.finish().unwrap();
            assert_eq!(answer.data, call.to_ne_bytes());
            assert_eq!(begun[call as usize], number);
        }
        // A place for an answer is free when it was used, and so there are no more of them than calls.
        begun.sort_unstable();
        assert_eq!(begun, (0..32).collect::<Vec<u32>>());
        let next = caller.begin(ECHO, &[]).unwrap();
        assert!(next < 32, "{next}");
        assert_eq!(caller.finish().unwrap().0, next);
        drop(caller);
        helper.succeeded();
    }

    fn an_open_brings_the_file() {
        let (near, far) = stream_pair();
        let helper = start_helper!(service, vec![far]);
        let mut caller = Caller::new(near);
        let file = caller.open(b"/proc/self/comm").unwrap();
        let mut said = String::new();
        std::fs::File::from(file).read_to_string(&mut said).unwrap();
        assert!(!said.is_empty());
        drop(caller);
        helper.succeeded();
    }

    fn what_cannot_be_opened_is_dropped_and_the_next_call_answered() {
        let (near, far) = stream_pair();
        let helper = start_helper!(service, vec![far]);
        let mut caller = Caller::new(near);
        assert!(matches!(caller.open(b"/nowhere"), Err(CallError::Dropped)));
        assert!(matches!(caller.call(OPEN, &[b"too short"]), Err(CallError::Dropped)));
        assert!(matches!(caller.call(0, &[]), Err(CallError::Dropped)));
        assert_eq!(caller.call(ECHO, &[b"still there?"]).unwrap().data, b"still there?");
        drop(caller);
        helper.succeeded();
    }

    fn a_dropped_continuation_is_told_either_way() {
        let (near, far) = stream_pair();
        let helper = start_helper!(drops_by_the_other_message, vec![far]);
        assert!(matches!(Caller::new(near).call(ECHO, &[]), Err(CallError::Dropped)));
        helper.succeeded();
    }

    fn a_server_that_dies_in_the_middle_of_an_answer_is_gone() {
        let (near, far) = stream_pair();
        let helper = start_helper!(breaks_off, vec![far]);
        assert!(matches!(Caller::new(near).call(ECHO, &[b"?"]), Err(CallError::Gone)));
        helper.succeeded();
    }

    fn an_answer_to_nobody_ends_the_connection() {
        let (near, far) = stream_pair();
        let helper = start_helper!(answers_whom_nobody_asked_for, vec![far]);
        let mut caller = Caller::new(near);
        assert!(matches!(caller.call(ECHO, &[]), Err(CallError::Malformed(Malformed::Nobody))));
        drop(caller);
        helper.succeeded();
    }

    fn a_caller_that_speaks_something_else_is_told_and_ends_nothing_else() {
        let (near, far) = stream_pair();
        rustix::net::send(near.as_fd(), b"GET / HTTP/1.1\r\n", SendFlags::NOSIGNAL).unwrap();
        let ended = plash::serve(far, plash::echo_and_open);
        assert!(matches!(ended, Err(CallError::Malformed(Malformed::Mark))), "{ended:?}");
    }

    fn descriptors_that_were_announced_and_did_not_come_are_lost() {
        let (near, far) = stream_pair();
        let whom = plash::wire::Id { index: plash::ROOT, namespace: plash::wire::Namespace::Receiver };
        let mut bytes = Vec::new();
        plash::wire::write_invocation(&mut bytes, whom, 1, &[b"here"]);
        rustix::net::send(near.as_fd(), &bytes, SendFlags::NOSIGNAL).unwrap();
        let ended = plash::serve(far, plash::echo_and_open);
        assert!(matches!(ended, Err(CallError::DescriptorsLost)), "{ended:?}");
    }
}
