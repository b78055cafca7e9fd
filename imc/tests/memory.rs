//! Shared and frozen memory: Native Client's assertions about memory objects, and what a receiver may rely
//! on whoever sent one.
#![allow(clippy::unwrap_used)]

use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use imc::{FrozenMemory, MEMORY_BYTES_MAX, MEMORY_UNIT_BYTES, MemoryError, SharedMemory};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use testing::{Census, helper, in_own_process, packet_pair, receive_packet, send_packet, start_helper};

const UNIT: usize = MEMORY_UNIT_BYTES;

/// As a stranger would make one.
fn stranger(bytes: u64, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("stranger", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes).unwrap();
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn sized() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW
}

fn read(memory: &SharedMemory, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    memory.map().unwrap().read_at(offset, &mut bytes).unwrap();
    bytes
}

helper! {
    /// Is given memory, one end of a pair, and nothing else; says when it has answered in the memory.
    fn answers_in_memory(descriptors: Vec<OwnedFd>) {
        let [memory, pair] = <[OwnedFd; 2]>::try_from(descriptors).unwrap();
        let memory = SharedMemory::from_fd(memory).unwrap();
        let mapping = memory.map_writable().unwrap();
        drop(memory);
        while !receive_packet(&pair).unwrap().bytes.is_empty() {
            let mut asked = [0; 4];
            mapping.read_at(0, &mut asked).unwrap();
            let answer = u32::from_le_bytes(asked) + 1;
            mapping.write_at(UNIT - 4, &answer.to_le_bytes()).unwrap();
            send_packet(&pair, b"answered", &[]).unwrap();
        }
    }

    /// Is given memory and writes to it for as long as it lives.
    fn writes_and_writes(descriptors: Vec<OwnedFd>) {
        let [memory, pair] = <[OwnedFd; 2]>::try_from(descriptors).unwrap();
        let memory = SharedMemory::from_fd(memory).unwrap();
        let mapping = memory.map_writable().unwrap();
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for round in 0_usize.. {
            mapping.write_at(0, &vec![round as u8; UNIT]).unwrap();
            fallocate(&memory, hole, 0, UNIT as u64).unwrap();
            assert!(ftruncate(&memory, 0).is_err(), "it is sealed");
            if round == 10 {
                send_packet(&pair, b"at work", &[]).unwrap();
            }
        }
    }
}

in_own_process! {
    fn sizes_from_64_kib_to_1_mib_are_made_and_are_zero() {
        for units in 1..=16 {
            let memory = SharedMemory::create(units * UNIT).unwrap();
            assert_eq!(memory.len(), units * UNIT);
            assert_eq!(read(&memory, 0, units * UNIT), vec![0; units * UNIT]);
        }
    }

    fn sizes_that_are_no_multiple_of_64_kib_are_refused() {
        for bytes in [0, 1, 4_096, UNIT - 1, UNIT + 1, UNIT + 4_096] {
            let Err(MemoryError::Size(told)) = SharedMemory::create(bytes) else { panic!("{bytes}") };
            assert_eq!(told, bytes as u64);
            let fd = stranger(bytes as u64, sized());
            assert!(matches!(SharedMemory::from_fd(fd), Err(MemoryError::Size(_))), "{bytes}");
        }
    }

    /// The largest is a stranger's, with nothing in it: making one here would commit it.
    fn the_largest_memory_is_taken_and_a_larger_one_is_not() {
        let largest = SharedMemory::from_fd(stranger(MEMORY_BYTES_MAX as u64, sized())).unwrap();
        assert_eq!(read(&largest, MEMORY_BYTES_MAX - 1, 1), [0]);
        let larger = stranger((MEMORY_BYTES_MAX + UNIT) as u64, sized());
        assert!(matches!(SharedMemory::from_fd(larger), Err(MemoryError::TooLarge)));
        assert!(matches!(SharedMemory::create(MEMORY_BYTES_MAX + UNIT), Err(MemoryError::TooLarge)));
    }

    fn two_mappings_are_coherent() {
        let memory = SharedMemory::create(UNIT).unwrap();
        let (one, other) = (memory.map_writable().unwrap(), memory.map_writable().unwrap());
        for round in 0..=255_u8 {
            one.write_at(usize::from(round), &[round]).unwrap();
            let mut seen = [0];
            other.read_at(usize::from(round), &mut seen).unwrap();
            assert_eq!(seen, [round]);
            other.write_at(UNIT - 1, &[!round]).unwrap();
            one.read_at(UNIT - 1, &mut seen).unwrap();
            assert_eq!(seen, [!round]);
        }
    }

    fn memory_stays_mapped_when_every_descriptor_is_closed() {
        let memory = SharedMemory::create(UNIT).unwrap();
        let (writer, reader) = (memory.map_writable().unwrap(), memory.map().unwrap());
        drop(memory);
        writer.write_at(100, b"still there").unwrap();
        let mut seen = [0; 11];
        reader.read_at(100, &mut seen).unwrap();
        assert_eq!(&seen, b"still there");
    }

    fn memory_is_sent_to_another_thread() {
        let memory = SharedMemory::create(UNIT).unwrap();
        let copy = memory.try_clone().unwrap();
        thread::spawn(move || copy.map_writable().unwrap().write_at(0, b"over there").unwrap())
            .join()
            .unwrap();
        assert_eq!(read(&memory, 0, 10), b"over there");
    }

    fn two_processes_share_memory() {
        let memory = SharedMemory::create(UNIT).unwrap();
        let (near, far) = packet_pair();
        let helper = start_helper!(answers_in_memory, vec![memory.share().unwrap(), far]);
        let mapping = memory.map_writable().unwrap();
        for round in [1_u32, 1_000, 1_000_000] {
            mapping.write_at(0, &round.to_le_bytes()).unwrap();
            send_packet(&near, b"asked", &[]).unwrap();
            assert_eq!(receive_packet(&near).unwrap().bytes, b"answered");
            assert_eq!(read(&memory, UNIT - 4, 4), (round + 1).to_le_bytes());
        }
        drop(near);
        helper.succeeded();
    }

    /// It may change everything we see; it cannot kill us or make us see what is not there.
    fn a_hostile_writer_is_survived() {
        let memory = SharedMemory::create(UNIT).unwrap();
        let (near, far) = packet_pair();
        let mut helper = start_helper!(writes_and_writes, vec![memory.share().unwrap(), far]);
        assert_eq!(receive_packet(&near).unwrap().bytes, b"at work");
        let mapping = memory.map_writable().unwrap();
        for round in 0..200_usize {
            let mut seen = vec![0; UNIT];
            mapping.read_at(0, &mut seen).unwrap();
            mapping.write_at(round, b"ours, for a moment").unwrap();
            mapping.word(round).unwrap().fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        helper.kill();
        mapping.write_at(0, b"ours").unwrap();
        assert_eq!(read(&memory, 0, 4), b"ours");
    }

    fn memory_that_could_shrink_or_grow_is_refused() {
        let census = Census::take();
        for seals in [SealFlags::empty(), SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL] {
            let fd = stranger(UNIT as u64, seals);
            assert!(matches!(SharedMemory::from_fd(fd), Err(MemoryError::Unsealed)), "{seals:?}");
            let fd = stranger(UNIT as u64, seals);
            assert!(matches!(FrozenMemory::from_fd(fd), Err(MemoryError::Unsealed)), "{seals:?}");
        }
        census.unchanged();
    }

    fn what_is_no_memory_is_refused() {
        let census = Census::take();
        let program = || OwnedFd::from(std::fs::File::open(std::env::current_exe().unwrap()).unwrap());
        let pipe = || OwnedFd::from(std::io::pipe().unwrap().0);
        for fd in [program(), pipe(), packet_pair().0] {
            assert!(matches!(SharedMemory::from_fd(fd), Err(MemoryError::NotMemory)));
        }
        assert!(matches!(FrozenMemory::from_fd(pipe()), Err(MemoryError::NotMemory)));
        census.unchanged();
    }

    fn shared_memory_gets_no_more_seals() {
        let memory = SharedMemory::create(UNIT).unwrap();
        let other = memory.share().unwrap();
        for seals in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
            assert_eq!(fcntl_add_seals(&other, seals).unwrap_err(), rustix::io::Errno::PERM);
        }
        let other = SharedMemory::from_fd(other).unwrap();
        let Err((other, MemoryError::ReadOnly)) = other.seal_writes() else { panic!("it was shared") };
        other.map_writable().unwrap().write_at(0, b"as before").unwrap();
        assert_eq!(read(&memory, 0, 9), b"as before");
    }

    fn memory_is_frozen_when_it_is_mapped_nowhere() {
        let memory = SharedMemory::create(UNIT).unwrap();
        let writer = memory.map_writable().unwrap();
        writer.write_at(0, b"for ever").unwrap();
        let Err((memory, MemoryError::Mapped)) = memory.seal_writes() else { panic!("it is mapped") };
        drop(writer);
        let reader = memory.map().unwrap();
        let Err((memory, MemoryError::Mapped)) = memory.seal_writes() else { panic!("it is mapped") };
        drop(reader);
        let frozen = memory.seal_writes().unwrap();
        assert_eq!(&frozen.map().unwrap()[..8], b"for ever");
        let again = SharedMemory::from_fd(frozen.share().unwrap()).unwrap();
        assert!(matches!(again.map_writable(), Err(MemoryError::ReadOnly)));
        assert_eq!(read(&again, 0, 8), b"for ever");
    }

    fn frozen_memory_has_any_size_but_none() {
        for length in [1, 4_095, 4_096, 100_000] {
            let memory = FrozenMemory::of(&[&vec![7; length]]).unwrap();
            assert_eq!(memory.len(), length);
            let taken = FrozenMemory::from_fd(memory.into_fd()).unwrap();
            assert_eq!(taken.map().unwrap()[..], vec![7; length]);
        }
        assert!(matches!(FrozenMemory::of(&[b"", b""]), Err(MemoryError::Size(0))));
    }

    fn memory_that_somebody_may_write_to_is_not_frozen() {
        let fd = stranger(UNIT as u64, sized() | SealFlags::FUTURE_WRITE);
        assert!(matches!(FrozenMemory::from_fd(fd), Err(MemoryError::Writable)));
        let shared = SharedMemory::create(UNIT).unwrap();
        assert!(matches!(FrozenMemory::from_fd(shared.into_fd()), Err(MemoryError::Writable)));
    }

    fn memory_passed_on_for_reading_is_mapped_for_reading() {
        let fd = stranger(UNIT as u64, sized() | SealFlags::FUTURE_WRITE);
        let memory = SharedMemory::from_fd(fd).unwrap();
        assert!(matches!(memory.map_writable(), Err(MemoryError::ReadOnly)));
        assert_eq!(read(&memory, 0, 3), [0; 3]);
    }

    fn without_descriptors_memory_says_so() {
        let memory = SharedMemory::create(UNIT).unwrap();
        let limit = testing::leave_descriptors(0);
        assert!(matches!(SharedMemory::create(UNIT), Err(MemoryError::OutOfDescriptors)));
        assert!(matches!(FrozenMemory::of(&[b"x"]), Err(MemoryError::OutOfDescriptors)));
        assert!(memory.try_clone().is_err());
        // A mapping needs none.
        memory.map_writable().unwrap().write_at(0, b"x").unwrap();
        drop(limit);
    }

    fn dropping_memory_closes_it() {
        let census = Census::take();
        for _ in 0..100 {
            let memory = SharedMemory::create(32 * UNIT).unwrap();
            let frozen = FrozenMemory::of(&[b"x"]).unwrap();
            assert!(memory.as_fd().try_clone_to_owned().is_ok());
            drop((memory.map().unwrap(), frozen.map().unwrap()));
        }
        census.unchanged();
    }

    fn without_address_space_a_mapping_says_so() {
        // More mappings than address space of 47 bits: 2^30 each, and 2^17 of them.
        let memory = SharedMemory::from_fd(stranger(MEMORY_BYTES_MAX as u64, sized())).unwrap();
        let mut mappings = Vec::new();
        let error = loop {
            match memory.map() {
                Ok(mapping) => mappings.push(mapping),
                Err(error) => break error,
            }
            assert!(mappings.len() <= 1 << 18, "address space has no end");
        };
        assert!(matches!(error, MemoryError::OutOfMemory), "{error:?}");
    }
}
