//! What a child process is given, under which number, and who may claim it.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use ring::inherit::{self, InheritError};
use testing::{helper, in_own_process, start_helper};

fn say(number: i32) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("echo to {number} >&{number}")]);
    command
}

fn read_all(mut reader: std::io::PipeReader) -> String {
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    said
}

in_own_process! {
    /// Each target is the other's source.
    fn numbers_may_cross() {
        let (read_one, one) = std::io::pipe().unwrap();
        let (read_two, two) = std::io::pipe().unwrap();
        let (one, two) = (OwnedFd::from(one), OwnedFd::from(two));
        let (number_one, number_two) = (one.as_raw_fd(), two.as_raw_fd());
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo crossed >&{number_two}; echo over >&{number_one}")]);
        inherit::give(&mut command, vec![(one, number_two), (two, number_one)]);
        assert!(command.status().unwrap().success());
        drop(command);
        assert_eq!(read_all(read_one), "crossed\n");
        assert_eq!(read_all(read_two), "over\n");
    }

    fn a_descriptor_may_keep_its_number() {
        let (reader, writer) = std::io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        let number = writer.as_raw_fd();
        let mut command = say(number);
        inherit::give(&mut command, vec![(writer, number)]);
        assert!(command.status().unwrap().success());
        drop(command);
        assert_eq!(read_all(reader), format!("to {number}\n"));
    }

    fn standard_output_can_be_given() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = say(1);
        inherit::give(&mut command, vec![(writer.into(), 1)]);
        assert!(command.status().unwrap().success());
        drop(command);
        assert_eq!(read_all(reader), "to 1\n");
    }

    fn a_command_started_twice_gives_twice() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = say(9);
        inherit::give(&mut command, vec![(writer.into(), 9)]);
        assert!(command.status().unwrap().success());
        assert!(command.status().unwrap().success());
        drop(command);
        assert_eq!(read_all(reader), "to 9\nto 9\n");
    }

    fn nothing_else_is_inherited() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let other = std::io::pipe().unwrap();
        let mut command = Command::new("sh");
        let number = other.0.as_raw_fd();
        command.args(["-c", &format!("! true <&{number}")]).stderr(std::process::Stdio::null());
        inherit::give(&mut command, vec![(writer.into(), 50)]);
        assert!(command.status().unwrap().success());
    }

    /// The pipe on which a child reports that it could not start must not be one of the numbers given.
    fn a_program_that_does_not_exist_is_an_error_whatever_the_numbers() {
        let (reader, writer) = std::io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        let writers: Vec<_> = (0..6).map(|_| writer.try_clone().unwrap()).collect();
        drop(writer);
        // The numbers that the next six descriptors will have, and so that pipe.
        let next: Vec<_> = (0..6).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let numbers: Vec<i32> = next.iter().map(AsRawFd::as_raw_fd).collect();
        drop(next);
        let given = writers.into_iter().zip(numbers).collect();
        let mut command = Command::new("/nonexistent/program");
        inherit::give(&mut command, given);
        assert!(command.status().is_err());
        drop(command);
        assert_eq!(read_all(reader), "");
    }

    fn a_number_named_twice_is_a_mistake_of_ours() {
        let give = |numbers: [i32; 2]| {
            let (reader, writer) = std::io::pipe().unwrap();
            let given = vec![(OwnedFd::from(reader), numbers[0]), (OwnedFd::from(writer), numbers[1])];
            let start = || inherit::give(&mut Command::new("true"), given).spawn().is_ok();
            std::panic::catch_unwind(start).is_err()
        };
        assert!(give([7, 7]));
        assert!(give([-1, 7]));
    }

    fn a_number_is_claimed_once() {
        // The harness claims what a helper is given, so the helper looks at what is left of that.
        let (reader, writer) = std::io::pipe().unwrap();
        start_helper!(claims_again, vec![reader.into(), writer.into()]).succeeded();
    }

    fn what_was_not_inherited_cannot_be_claimed() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let number = reader.as_raw_fd();
        assert_eq!(inherit::take(number).unwrap_err(), InheritError::NotInherited(number));
        assert_eq!(inherit::take(999).unwrap_err(), InheritError::NotOpen(999));
        assert_eq!(inherit::take(-1).unwrap_err(), InheritError::NotOpen(-1));
    }
}

helper! {
    fn claims_again(descriptors: Vec<OwnedFd>) {
        let numbers: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        for number in &numbers {
            assert_eq!(inherit::take(*number).unwrap_err(), InheritError::NotInherited(*number));
        }
        drop(descriptors);
        for number in numbers {
            assert_eq!(inherit::take(number).unwrap_err(), InheritError::NotOpen(number));
        }
    }
}
