//! What the suites measure does what it is said to do, across two processes and on each driver: a suite that
//! measured something else would only be fast.
#![allow(clippy::unwrap_used)]

use std::os::fd::OwnedFd;

use benches::service::{self, Client, Protocol, Request};
use perf::connect::{self, Manner, RawClient};
use perf::fds::{self, Sender};
use perf::floor::packet_pair;
use perf::large::{self, Beside, Mover, RawBeside, RawMover};
use perf::process::Order;
use perf::scale::{self, Called, Control, Holder, Kind, Memory};
use ring::Reactor;
use testing::{helper, helper_argument, in_own_process, on_each_driver, start_helper};

helper! {
    fn acceptor(descriptors: Vec<OwnedFd>) {
        connect::serve(order(descriptors)).unwrap();
    }

    fn raw_acceptor(descriptors: Vec<OwnedFd>) {
        connect::serve_raw(order(descriptors)).unwrap();
    }

    fn receiver(descriptors: Vec<OwnedFd>) {
        fds::serve(order(descriptors)).unwrap();
    }

    fn looker(descriptors: Vec<OwnedFd>) {
        large::serve(order(descriptors)).unwrap();
    }

    fn raw_looker(descriptors: Vec<OwnedFd>) {
        large::serve_raw(order(descriptors)).unwrap();
    }

    fn raw_echo(descriptors: Vec<OwnedFd>) {
        let [socket] = order(descriptors).take().unwrap();
        perf::floor::serve_echo(socket, perf::Wait::Sleep).unwrap();
    }

    fn load(descriptors: Vec<OwnedFd>) {
        large::serve_load(order(descriptors)).unwrap();
    }

    fn many(descriptors: Vec<OwnedFd>) {
        scale::serve(order(descriptors)).unwrap();
    }

    fn scales(descriptors: Vec<OwnedFd>) {
        scale::weigh(order(descriptors)).unwrap();
    }

    fn service(descriptors: Vec<OwnedFd>) {
        service::serve(order(descriptors)).unwrap();
    }
}

/// What a helper was started with, as a server of a suite would have it.
fn order(given: Vec<OwnedFd>) -> Order {
    Order::new(given, helper_argument(), testing::driver())
}

on_each_driver! {
    fn each_way_connects_whole_batches(reactor: &Reactor) {
        for way in connect::Way::ALL {
            for depth in [1, 32] {
                let (here, there) = connect::ends(way).unwrap();
                let helper = start_helper!(acceptor, there, connect::told(way, depth));
                let mut client = connect::Client::new(reactor, way, depth, here).unwrap();
                client.batches(3).unwrap();
                client.end();
                helper.succeeded();
            }
        }
    }

    fn each_way_passes_one_to_eight_descriptors(reactor: &Reactor) {
        for way in fds::Way::ALL {
            for count in 1..=fds::PAPER_US.len() {
                let (mut sender, far) = Sender::new(way, count, reactor).unwrap();
                let helper = start_helper!(receiver, vec![far], way.name());
                for _ in 0..2 {
                    let prepared = sender.prepare().unwrap();
                    sender.batch(prepared).unwrap();
                }
                sender.end();
                helper.succeeded();
            }
        }
    }

    fn large_bytes_arrive_each_way(reactor: &Reactor) {
        for way in large::Way::ALL {
            for bytes in [256 << 10, 4 << 20] {
                let (address, bound) = packet_pair().unwrap();
                let helper = start_helper!(looker, vec![bound]);
                let mut mover = Mover::new(reactor, address, way, bytes).unwrap();
                mover.moves(2).unwrap();
                mover.end();
                helper.succeeded();
                let (address, bound) = packet_pair().unwrap();
                let helper = start_helper!(looker, vec![bound]);
                let mut mover = Mover::blocking(address, way, bytes).unwrap();
                mover.moves(2).unwrap();
                mover.end();
                helper.succeeded();
            }
        }
    }

    fn small_calls_are_made_while_a_large_one_is_under_way(reactor: &Reactor) {
        let (address, bound) = packet_pair().unwrap();
        let helper = start_helper!(looker, vec![bound]);
        let mut beside = Beside::new(reactor, address, 4 << 20).unwrap();
        let mut told = 0;
        beside.calls(50, |_| told += 1).unwrap();
        assert!(told >= 50, "{told}");
        beside.end();
        helper.succeeded();
    }

    fn a_raw_pair_goes_there_and_back_under_a_load_that_stops(_reactor: &Reactor) {
        let (socket, echo) = packet_pair().unwrap();
        let (address, bound) = packet_pair().unwrap();
        let (control, far) = packet_pair().unwrap();
        let helpers = [
            start_helper!(raw_echo, vec![echo]),
            start_helper!(load, vec![far, address], (1 << 20).to_string()),
            start_helper!(looker, vec![bound]),
        ];
        let mut beside = RawBeside::new(socket, control);
        let mut told = 0;
        beside.calls(20, |_| told += 1).unwrap();
        beside.calls(20, |_| told += 1).unwrap();
        assert!(told >= 40, "{told}");
        drop(beside);
        helpers.into_iter().for_each(testing::Helper::succeeded);
    }

    fn many_objects_and_many_sessions_are_called_in_turn(reactor: &Reactor) {
        for kind in [Kind::Objects, Kind::Sessions] {
            let (control, far) = Control::new().unwrap();
            let helper = start_helper!(many, vec![far]);
            let mut holder = Holder::new(reactor, control, kind, 100).unwrap();
            holder.attach(90).unwrap();
            holder.calls(Called::Each, 250).unwrap();
            holder.calls(Called::One, 10).unwrap();
            holder.end();
            helper.succeeded();
        }
    }

    fn what_is_held_is_weighed(_reactor: &Reactor) {
        let (wire, far) = packet_pair().unwrap();
        let (near, report) = packet_pair().unwrap();
        let server = start_helper!(many, vec![far]);
        let scales = start_helper!(scales, vec![wire, report], "objects 200");
        let memory = Memory::reported(&near).unwrap();
        assert!(memory.attached_there > 0, "{memory:?}");
        scales.succeeded();
        server.succeeded();
    }

    fn each_protocol_echoes_and_opens(reactor: &Reactor) {
        let requests =
            [Request::Echo(1), Request::Echo(32), Request::Open(b"/proc/self/comm".to_vec())];
        for protocol in Protocol::ALL {
            for request in &requests {
                let (near, far) = protocol.ends().unwrap();
                let helper = start_helper!(service, vec![far], protocol.name());
                let mut client = Client::new(reactor, protocol, near, request.clone()).unwrap();
                client.requests(3).unwrap();
                client.end();
                testing::turn(reactor);
                helper.succeeded();
            }
        }
    }
}

in_own_process! {
    fn each_way_connects_by_bare_system_calls() {
        let asking = [connect::Way::Replacement, connect::Way::Confirmed].map(|way| (way, Manner::Asking));
        for (way, manner) in connect::Way::ALL.map(|way| (way, Manner::Trusting)).into_iter().chain(asking) {
            for depth in [1, 32] {
                let (mut client, there) = RawClient::new(way, depth, manner).unwrap();
                let helper = start_helper!(raw_acceptor, there, connect::told_raw(way, depth, manner));
                client.batches(3).unwrap();
                client.end();
                helper.succeeded();
            }
        }
    }

    fn bare_packets_lose_no_bytes() {
        for packet_bytes in [large::PACKET, large::PART] {
            let (mut mover, far) = RawMover::new(4 << 20, packet_bytes).unwrap();
            let helper = start_helper!(raw_looker, vec![far], packet_bytes.to_string());
            mover.moves(2).unwrap();
            drop(mover);
            helper.succeeded();
        }
    }

    fn a_raw_client_says_that_its_acceptor_is_gone() {
        for way in connect::Way::ALL {
            let (mut client, there) = RawClient::new(way, 1, Manner::Trusting).unwrap();
            // Nobody accepts, and nobody ever will.
            drop(there);
            if matches!(way, connect::Way::Replacement | connect::Way::Confirmed) {
                assert!(client.batches(1).is_err());
            }
            client.end();
        }
    }
}
