//! iceoryx2 request-response: samples in shared memory, loaned and written in place on both sides.
//!
//! Where each side has a CPU, both look for the other's sample, which is what its own benchmarks do. Where
//! they share one, looking would only keep the other from it: each then tells the other by an event, once
//! for each batch, and sleeps on its listener, as its documentation describes for those who do not want to
//! look.
//!
//! Descriptors do not travel in shared memory.

use std::os::fd::OwnedFd;
use std::time::Duration;

use iceoryx2::pending_response::PendingResponse;
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::prelude::{LogLevel, Node, NodeBuilder, SignalHandlingMode, ipc, set_log_level};
use iceoryx2::service::port_factory::request_response;

use super::{Calls, PAYLOAD, Terms, batches};
use crate::{Failure, note};

type Payload = [u8; PAYLOAD];
type Service = request_response::PortFactory<ipc::Service, Payload, (), Payload, ()>;
type Pending = PendingResponse<ipc::Service, Payload, (), Payload, ()>;

/// How long somebody sleeps before it looks whether the other is still there.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// How often somebody looks for a sample before it looks whether the other is still there.
const LOOKS_MAX: u32 = 1 << 18;

/// One side's way to tell the other that there is something, and to be told.
struct Bell {
    telling: Notifier<ipc::Service>,
    told: Listener<ipc::Service>,
}

pub fn call(terms: Terms, end: OwnedFd, server: u32) -> Result<Calls, Failure> {
    // It says that it is there when it is.
    note::read(&end)?;
    let node = node()?;
    let service = service(&node, server, terms)?;
    let client = service.client_builder().create()?;
    let bell = bell(&node, terms, [format!("{server}/asked"), format!("{server}/answered")])?;
    let mut pending = Vec::with_capacity(terms.depth);
    Ok(Box::new(move |count, recorder| {
        // What is dropped with the last call is the node, and with it what it has in the file system.
        let _node = &node;
        batches(count, terms.depth, recorder, || {
            for _ in 0..terms.depth {
                let request = client.loan_uninit()?;
                pending.push(request.write_payload([7; PAYLOAD]).send()?);
            }
            if let Some(bell) = &bell {
                bell.telling.notify()?;
            }
            pending.drain(..).try_for_each(|pending| answered(&pending, bell.as_ref(), &end))
        })
    }))
}

fn answered(pending: &Pending, bell: Option<&Bell>, end: &OwnedFd) -> Result<(), Failure> {
    let mut looks = 0;
    loop {
        if let Some(answer) = pending.receive()? {
            return super::whole(answer.payload().len());
        }
        if wait(bell, &mut looks)? == Waited::Long && note::is_alone(end) {
            return Err("its server has died".into());
        }
    }
}

pub fn serve(terms: Terms, end: OwnedFd) -> Result<(), Failure> {
    let node = node()?;
    let own = std::process::id();
    let service = service(&node, own, terms)?;
    let server = service.server_builder().create()?;
    let bell = bell(&node, terms, [format!("{own}/answered"), format!("{own}/asked")])?;
    note::write(&end, b"ready")?;
    let mut looks = 0;
    loop {
        let mut has_answered = false;
        while let Some(request) = server.receive()? {
            let answer = request.loan_uninit()?;
            answer.write_payload(*request.payload()).send()?;
            (has_answered, looks) = (true, 0);
        }
        if let Some(bell) = &bell
            && has_answered
        {
            bell.telling.notify()?;
        }
        if wait(bell.as_ref(), &mut looks)? == Waited::Long && note::is_alone(&end) {
            return Ok(());
        }
    }
}

#[derive(PartialEq, Eq)]
enum Waited {
    Short,
    /// Long enough to ask whether the other is still there.
    Long,
}

fn wait(bell: Option<&Bell>, looks: &mut u32) -> Result<Waited, Failure> {
    let was_long = match bell {
        Some(bell) => bell.told.timed_wait(|_| {}, SLEEP_MAX)? == 0,
        None => {
            std::hint::spin_loop();
            *looks = (*looks + 1) % LOOKS_MAX;
            *looks == 0
        }
    };
    Ok(if was_long { Waited::Long } else { Waited::Short })
}

fn node() -> Result<Node<ipc::Service>, Failure> {
    set_log_level(LogLevel::Error);
    Ok(NodeBuilder::new().signal_handling_mode(SignalHandlingMode::Disabled).create::<ipc::Service>()?)
}

/// One service for each server process, so that runs beside each other do not meet.
fn service(node: &Node<ipc::Service>, server: u32, terms: Terms) -> Result<Service, Failure> {
    let name = format!("sendright/peers/{server}");
    let builder = node.service_builder(&name.as_str().try_into()?).request_response::<Payload, Payload>();
    Ok(builder
        .max_active_requests_per_client(terms.depth)
        .max_loaned_requests(terms.depth)
        .open_or_create()?)
}

fn bell(node: &Node<ipc::Service>, terms: Terms, names: [String; 2]) -> Result<Option<Bell>, Failure> {
    if terms.looks {
        return Ok(None);
    }
    let event = |name: &String| {
        let name = format!("sendright/peers/{name}");
        Ok::<_, Failure>(node.service_builder(&name.as_str().try_into()?).event().open_or_create()?)
    };
    let [telling, told] = names;
    let telling = event(&telling)?.notifier_builder().create()?;
    let told = event(&told)?.listener_builder().create()?;
    Ok(Some(Bell { telling, told }))
}
