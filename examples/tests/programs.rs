//! Each example runs, on each driver, without arguments, and shows what it promises.
//!
//! The programs are those that `cargo test` builds beside this one. What they print is only looked at for the
//! line that says it worked; the exit status is theirs to get right.
#![allow(clippy::unwrap_used)]

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use ring::Reactor;
use testing::on_each_driver;

on_each_driver! {
    fn the_adder_adds_in_another_process(_reactor: &Reactor) {
        let shown = succeeds("adder", &[]);
        assert!(shown.contains("2 + 40 = 42"), "{shown}");
        assert!(shown.contains("1..10 doubled: 2 4 6 8 10 12 14 16 18 20"), "{shown}");
    }

    fn a_worker_answers_what_the_front_was_asked(_reactor: &Reactor) {
        let shown = succeeds("forwarded_answer", &[]);
        assert!(shown.contains("was told: hello Ada"), "{shown}");
        assert!(shown.contains("asked for nobody: nobody will answer"), "{shown}");
    }

    fn workers_share_an_object_and_outlive_each_other(_reactor: &Reactor) {
        let shown = succeeds("shared_workers", &[]);
        assert!(shown.contains("12 clients were served by"), "{shown}");
        assert!(shown.contains("was killed"), "{shown}");
        assert!(shown.contains("with the last worker the object is gone"), "{shown}");
    }

    fn a_deadline_stops_work_two_processes_away(_reactor: &Reactor) {
        let shown = succeeds("deadlines", &[]);
        assert!(shown.contains("caller: something quick: done in time"), "{shown}");
        assert_eq!(shown.matches("worker: the time that is left is known").count(), 2, "{shown}");
        assert!(shown.contains("worker: nobody waits any more, stopped"), "{shown}");
        assert!(shown.contains("caller: no answer in time"), "{shown}");
    }

    fn a_worker_serves_tcp_connections_it_did_not_accept(_reactor: &Reactor) {
        let shown = succeeds("tcp_worker", &[]);
        assert_eq!(shown.matches("a client was told: GET /").count(), 3, "{shown}");
    }

    fn large_messages_arrive_each_way(_reactor: &Reactor) {
        let shown = succeeds("large_messages", &["1"]);
        for way in ["bare packets", "large call", "large answer", "sealed memory"] {
            assert_eq!(shown.matches(way).count(), 5, "{shown}");
        }
    }

    fn each_message_runs_the_callback_once(_reactor: &Reactor) {
        let shown = succeeds("make_socket", &[]);
        for said in ["says: loading\n", "says: loaded\n", "says: may I go? (and was answered: true)\n"] {
            assert_eq!(shown.matches(said).count(), 1, "{shown}");
        }
        assert!(shown.contains("the child was told: noted"), "{shown}");
    }

    fn a_word_that_a_program_does_not_know_is_not_passed_over(_reactor: &Reactor) {
        for example in ["waiting", "older_ways", "million_calls"] {
            let output = run(example, &["nonsense"]);
            assert!(!output.status.success(), "{example} has done something all the same");
            assert!(!output.stderr.is_empty(), "{example} does not say what is wrong");
        }
    }

    fn three_ways_lead_to_the_same_place(_reactor: &Reactor) {
        let shown = succeeds("older_ways", &[]);
        assert_eq!(shown.matches("hello, from who was").count(), 3, "{shown}");
        assert_eq!(shown.matches("there is its name").count(), 2, "{shown}");
    }

    fn python_is_a_peer_or_the_example_says_that_there_is_none(_reactor: &Reactor) {
        let shown = succeeds("python_peer", &[]);
        let is_done = shown.contains("served by python with our help: REWARD");
        assert!(is_done || shown.contains("skipped: there is no python3"), "{shown}");
    }

    fn thousands_of_plain_calls_lose_no_answer(_reactor: &Reactor) {
        let shown = succeeds("million_calls", &["5000"]);
        assert!(shown.contains("answered: 5,000\nlost: 0\nduplicated: 0\nwrong: 0\n"), "{shown}");
    }

    fn thousands_of_plain_calls_at_a_time_lose_no_answer(_reactor: &Reactor) {
        let shown = succeeds("million_calls", &["5,000", "16"]);
        assert!(shown.contains("answered: 5,000\nlost: 0\nduplicated: 0\nwrong: 0\n"), "{shown}");
    }

    fn a_client_without_a_loop_waits_where_it_calls(_reactor: &Reactor) {
        let shown = succeeds("blocking_client", &[]);
        assert!(shown.contains("one answer: 2 words"), "{shown}");
        assert!(shown.contains("several: 1 word, 2 words, 3 words"), "{shown}");
        assert!(shown.contains("of a pipe: 7 words"), "{shown}");
        assert!(shown.contains("too late: the deadline"), "{shown}");
        assert!(shown.contains("and there: 3 words"), "{shown}");
    }

    fn one_loop_serves_a_clock_and_a_guest(_reactor: &Reactor) {
        let shown = succeeds("guest_epoll", &[]);
        assert!(shown.contains("the guest was told: ONE LOOP SERVES BOTH\n"), "{shown}");
        assert!(shown.contains("the clock ticked, too: true\n"), "{shown}");
    }

    fn objects_are_called_in_tasks_of_tokio(_reactor: &Reactor) {
        let shown = succeeds("guest_tokio", &[]);
        assert!(shown.contains("hello task 0, hello task 1,"), "{shown}");
        assert!(shown.contains("a slow call was given up by tokio's clock\n"), "{shown}");
    }

    fn handlers_of_http_call_objects(_reactor: &Reactor) {
        let shown = succeeds("http", &[]);
        assert!(shown.contains("GET /sum/2/40: HTTP/1.1 200 OK: 42\n"), "{shown}");
        assert!(shown.contains("GET /sum/two/forty: HTTP/1.1 400 Bad Request: "), "{shown}");
        assert!(shown.contains("GET /elsewhere: HTTP/1.1 404 Not Found: "), "{shown}");
    }

    /// One connection asks several times, as browsers do.
    fn a_real_client_asks_over_http(_reactor: &Reactor) {
        let mut server = Server::start("http", &["127.0.0.1:0"]);
        let address = server.line_after("listening on ");
        let mut connection = TcpStream::connect(&address).unwrap();
        let mut answers = BufReader::new(connection.try_clone().unwrap());
        for (numbers, sum) in [("1/2", "3"), ("20/22", "42"), ("7", "7")] {
            write!(connection, "GET /sum/{numbers} HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            assert_eq!(http_answer(&mut answers), ("HTTP/1.1 200 OK".to_owned(), format!("{sum}\n")));
        }
        drop((connection, answers));
        // And several at a time.
        let clients: Vec<_> = (0..8_u32)
            .map(|number| {
                let mut connection = TcpStream::connect(&address).unwrap();
                write!(connection, "GET /sum/{number}/1 HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
                (connection, number)
            })
            .collect();
        for (connection, number) in clients {
            assert_eq!(http_answer(&mut BufReader::new(connection)).1, format!("{}\n", number + 1));
        }
    }

    fn each_way_to_wait_has_a_row(_reactor: &Reactor) {
        let shown = succeeds("waiting", &[]);
        for way in ["sleep ", "spin ", "epoll ", "tokio "] {
            assert!(shown.lines().any(|row| row.starts_with(way)), "{way}:\n{shown}");
        }
        for way in ["sleep", "spin", "epoll", "tokio"] {
            assert!(run("waiting", &[way, "100"]).status.success(), "{way}");
        }
    }

    fn a_number_of_calls_that_is_none_is_an_error(_reactor: &Reactor) {
        for arguments in [&["0"][..], &["many"], &["1", "2", "3"]] {
            let output = run("million_calls", arguments);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}");
            assert!(String::from_utf8_lossy(&output.stderr).starts_with("million_calls: "), "{arguments:?}");
        }
    }
}

/// An example that goes on until it is killed, which dropping this does.
struct Server {
    process: Child,
    shown: BufReader<ChildStdout>,
}

impl Server {
    #[track_caller]
    fn start(example: &str, arguments: &[&str]) -> Server {
        let mut command = Command::new(examples().join(example));
        command.args(arguments).env(ring::DRIVER_VARIABLE, testing::driver().to_string());
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let shown = BufReader::new(process.stdout.take().unwrap());
        Server { process, shown }
    }

    /// What follows these words on the line that begins with them.
    #[track_caller]
    fn line_after(&mut self, words: &str) -> String {
        let mut line = String::new();
        while self.shown.read_line(&mut line).unwrap() > 0 {
            if let Some(rest) = line.strip_prefix(words) {
                return rest.trim_end().to_owned();
            }
            line.clear();
        }
        panic!("it ended without saying \"{words}\"");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The first line of an answer, and its body.
#[track_caller]
fn http_answer(from: &mut impl BufRead) -> (String, String) {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        assert!(from.read_line(&mut line).unwrap() > 0, "the connection ended within an answer: {head:?}");
        if line.trim_end().is_empty() {
            break;
        }
        head.push(line.trim_end().to_ascii_lowercase());
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    from.read_exact(&mut body).unwrap();
    let status = head[0].replacen("http", "HTTP", 1).replace("ok", "OK");
    (status, String::from_utf8(body).unwrap())
}

/// Runs an example on this body's driver. What it printed.
#[track_caller]
fn succeeds(example: &str, arguments: &[&str]) -> String {
    let output = run(example, arguments);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{example}: {}\n{shown}{complaints}", output.status);
    let driver = format!(" {}: asked for by {}", testing::driver(), ring::DRIVER_VARIABLE);
    assert!(shown.contains(&driver), "{example} does not say \"{driver}\":\n{shown}");
    shown
}

#[track_caller]
fn run(example: &str, arguments: &[&str]) -> Output {
    let program = examples().join(example);
    let mut command = Command::new(&program);
    command.args(arguments).env(ring::DRIVER_VARIABLE, testing::driver().to_string());
    command.output().unwrap_or_else(|error| {
        panic!("{}: {error} (`cargo test --test` alone builds no examples)", program.display())
    })
}

/// This program is in `deps`, and the examples are beside it.
fn examples() -> PathBuf {
    let program = env::current_exe().unwrap();
    program.parent().and_then(|deps| deps.parent()).unwrap().join("examples")
}
