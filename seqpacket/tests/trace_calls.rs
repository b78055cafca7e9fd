//! Each call has one span on each side, which says its number and how it ended, and each answer that lost
//! descriptors an event where it was given. (Feature `trace-calls`.)
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use ring::{Executor, Fd, Reactor};
use seqpacket::{CallOptions, object};
use support::*;
use testing::{leave_descriptors, on_each_driver};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Every span that was begun, with what was said of it, how many have ended, and every event.
#[derive(Default)]
struct Spans {
    begun: Vec<HashMap<String, String>>,
    closed: usize,
    events: Vec<HashMap<String, String>>,
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Spans>>);

struct Fields<'a>(&'a mut HashMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let before = self.0.insert(field.name().to_owned(), value.to_owned());
        assert!(before.is_none(), "{} was said twice", field.name());
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "seqpacket"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = HashMap::from([("name".to_owned(), span.metadata().name().to_owned())]);
        span.record(&mut Fields(&mut fields));
        let begun = &mut self.0.lock().unwrap().begun;
        begun.push(fields);
        Id::from_u64(begun.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let place = span.into_u64() as usize - 1;
        values.record(&mut Fields(&mut self.0.lock().unwrap().begun[place]));
    }

    fn try_close(&self, _: Id) -> bool {
        self.0.lock().unwrap().closed += 1;
        true
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = HashMap::new();
        event.record(&mut Fields(&mut fields));
        self.0.lock().unwrap().events.push(fields);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

on_each_driver! {
    fn each_call_has_a_span_on_each_side_that_says_how_it_ended(reactor: &Reactor) {
        let collector = Collector::default();
        let _tracing = tracing::subscriber::set_default(collector.clone());
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let small = CallOptions { answer_bytes: Some(1), ..CallOptions::default() };
        let calls = vec![
            object.call("answered"),
            object.call("dropped"),
            object.call("refused"),
            object.call_with("too large", small),
        ];
        let withdrawn = object.call("withdrawn");
        executor.block_on(async {
            mailbox.next().await.unwrap().answer("done").unwrap();
            drop(mailbox.next().await.unwrap());
            mailbox.next().await.unwrap().refuse();
            assert!(mailbox.next().await.unwrap().answer("two").is_err());
            let taken = mailbox.next().await.unwrap();
            drop(withdrawn);
            taken.continuation().cancelled().await;
            drop(taken);
            all(calls).await;
        });
        let spans = collector.0.lock().unwrap();
        let of = |name: &str| {
            let those = spans.begun.iter().filter(|span| span["name"] == name);
            let mut ends: Vec<_> =
                those.map(|span| (span["number"].parse::<u32>().unwrap(), span["outcome"].clone())).collect();
            ends.sort();
            ends.into_iter().map(|(_, outcome)| outcome).collect::<Vec<_>>()
        };
        assert_eq!(of("call"), ["answered", "dropped", "refused", "too large", "withdrawn"]);
        assert_eq!(of("serve"), ["answered", "dropped", "refused", "too large", "withdrawn"]);
        let pid = std::process::id().to_string();
        let served: Vec<_> = spans.begun.iter().filter(|span| span["name"] == "serve").collect();
        assert!(served.iter().all(|span| span["pid"] == pid));
        assert_eq!(served[0]["bytes"], "8");
        assert_eq!(spans.closed, spans.begun.len());
        assert!(spans.events.is_empty());
    }

    fn an_answer_that_lost_descriptors_is_an_event_where_it_was_given(reactor: &Reactor) {
        let collector = Collector::default();
        let _tracing = tracing::subscriber::set_default(collector.clone());
        let (object, mailbox) = object(reactor).unwrap();
        let executor = Executor::new(reactor);
        let fd = Fd::from(null());
        let call = object.call("ten");
        executor.block_on(mailbox.next()).unwrap().answer(with_many("ten", &fd, 10)).unwrap();
        ring::closer_idle();
        let limit = leave_descriptors(0);
        executor.block_on(call).unwrap_err();
        drop(limit);
        until(&executor, "the server hears of it", || mailbox.stats().answers_lost == 1);
        let spans = collector.0.lock().unwrap();
        let [event] = &spans.events[..] else { panic!("{:?}", spans.events) };
        assert_eq!(event["message"], "descriptors of an answer were lost at its caller");
        assert_eq!((event["number"].as_str(), event["pid"] == std::process::id().to_string()), ("0", true));
        let outcome = |name: &str| {
            let span = spans.begun.iter().find(|span| span["name"] == name);
            span.unwrap()["outcome"].clone()
        };
        assert_eq!([outcome("call"), outcome("serve")], ["descriptors lost", "answered"]);
    }
}
