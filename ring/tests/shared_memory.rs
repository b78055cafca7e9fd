//! Files in memory: what is sealed, what may be mapped, and that a mapping keeps its promises whatever the
//! other holders do.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use ring::shared_memory::{
    self, BYTES_MAX, FrozenMapping, Mapping, Seals, WritableMapping, add_seals, examine,
};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};
use testing::in_own_process;

/// As a stranger would make one.
fn stranger(bytes: u64, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("stranger", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes).unwrap();
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn read(mapping: &Mapping, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    mapping.read_at(offset, &mut bytes).unwrap();
    bytes
}

in_own_process! {
    fn fresh_memory_is_zero() {
        let memory = shared_memory::create(1 << 20).unwrap();
        assert_eq!(read(&Mapping::new(&memory).unwrap(), 0, 1 << 20), vec![0; 1 << 20]);
    }

    fn memory_of_no_bytes_is_not_made() {
        let error = shared_memory::create(0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    /// Whoever is asked for a descriptor twice may give two.
    fn what_is_mapped_is_what_was_looked_at() {
        struct Another(OwnedFd, OwnedFd, std::cell::Cell<bool>);
        impl AsFd for &Another {
            fn as_fd(&self) -> BorrowedFd<'_> {
                if self.2.replace(true) { self.1.as_fd() } else { self.0.as_fd() }
            }
        }
        let another = |sealed: OwnedFd| {
            let can_shrink = stranger(4096, SealFlags::empty());
            Another(sealed, can_shrink, std::cell::Cell::new(false))
        };
        let both = another(shared_memory::create(4096).unwrap());
        let (mapping, here) = (Mapping::new(&both).unwrap(), WritableMapping::new(&both.0).unwrap());
        here.write_at(0, b"the one that is sealed").unwrap();
        assert_eq!(read(&mapping, 0, 22), b"the one that is sealed");
        let both = another(shared_memory::create_frozen(&[b"frozen"]).unwrap());
        assert_eq!(&FrozenMapping::new(&both).unwrap()[..], b"frozen");
    }

    fn what_one_mapping_writes_another_reads() {
        let memory = shared_memory::create(65_536).unwrap();
        let one = WritableMapping::new(&memory).unwrap();
        let another = WritableMapping::new(&memory).unwrap();
        let looking = Mapping::new(&memory).unwrap();
        one.write_at(65_533, b"end").unwrap();
        another.write_at(3, b"beginning").unwrap();
        assert_eq!(read(&looking, 65_530, 6), b"\0\0\0end");
        assert_eq!(read(&looking, 0, 13), b"\0\0\0beginning\0");
        let mut seen = [0; 9];
        one.read_at(3, &mut seen).unwrap();
        assert_eq!(&seen, b"beginning");
    }

    fn memory_is_used_after_its_descriptor_is_closed() {
        let memory = shared_memory::create(65_536).unwrap();
        let (one, another) = (WritableMapping::new(&memory).unwrap(), Mapping::new(&memory).unwrap());
        drop(memory);
        one.write_at(0, b"still there").unwrap();
        drop(one);
        assert_eq!(read(&another, 0, 11), b"still there");
    }

    fn bounds_are_kept() {
        let memory = shared_memory::create(4_096 + 3).unwrap();
        let mapping = WritableMapping::new(&memory).unwrap();
        assert_eq!(mapping.len(), 4_099);
        mapping.write_at(4_096, b"end").unwrap();
        mapping.write_at(4_099, b"").unwrap();
        let mut end = [0; 4];
        mapping.read_at(4_096, &mut end[..3]).unwrap();
        assert_eq!(&end[..3], b"end");
        for offset in [4_096, 4_100, usize::MAX - 1, usize::MAX] {
            assert_eq!(mapping.write_at(offset, b"over").unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(mapping.read_at(offset, &mut end).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let words = 4_099_usize.div_ceil(size_of::<usize>());
        assert!(mapping.word(words - 1).is_some());
        assert!(mapping.word(words).is_none());
    }

    fn seals_are_told() {
        let memory = shared_memory::create(8_192).unwrap();
        let facts = examine(&memory).unwrap();
        assert_eq!((facts.bytes, facts.seals), (8_192, Seals::SIZE));
        for bytes in [0, 8_191, 8_193] {
            assert_eq!(ftruncate(&memory, bytes).unwrap_err(), rustix::io::Errno::PERM);
        }
        let writer = WritableMapping::new(&memory).unwrap();
        assert_eq!(add_seals(&memory, Seals::FROZEN).unwrap_err().kind(), ErrorKind::ResourceBusy);
        drop(writer);
        add_seals(&memory, Seals::FROZEN).unwrap();
        assert_eq!(examine(&memory).unwrap().seals, Seals::FROZEN);
        assert_eq!(WritableMapping::new(&memory).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(add_seals(&memory, Seals::SIZE).unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    fn what_could_shrink_is_not_mapped() {
        for seals in [SealFlags::empty(), SealFlags::GROW, SealFlags::SHRINK, SealFlags::SEAL] {
            let memory = stranger(65_536, seals);
            assert!(!examine(&memory).unwrap().seals.size);
            assert_eq!(Mapping::new(&memory).unwrap_err().kind(), ErrorKind::InvalidInput);
            assert_eq!(WritableMapping::new(&memory).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }

    fn what_is_no_memory_is_not_mapped() {
        let pipe = OwnedFd::from(std::io::pipe().unwrap().0);
        let (socket, _peer) = testing::packet_pair();
        let program = OwnedFd::from(File::open(std::env::current_exe().unwrap()).unwrap());
        for fd in [pipe, socket, program] {
            assert_eq!(examine(&fd), None);
            assert_eq!(Mapping::new(&fd).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let empty = stranger(0, SealFlags::SHRINK | SealFlags::GROW);
        assert_eq!(Mapping::new(&empty).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    fn large_pages_are_not_mapped() {
        // Made without taking a page, so it does not matter whether this machine has any.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        match memfd_create("large", flags) {
            Ok(memory) => {
                fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW).unwrap();
                assert_eq!(examine(&memory), None);
            }
            Err(error) => println!("no large pages here: {error}"),
        }
    }

    fn frozen_memory_is_plain_bytes() {
        let memory = shared_memory::create_frozen(&[b"for ", b"", b"ever"]).unwrap();
        let mapping = FrozenMapping::new(&memory).unwrap();
        assert_eq!(&mapping[..], b"for ever");
        // Every way there is to change it.
        assert!(File::from(memory.try_clone().unwrap()).write_all(b"x").is_err());
        assert!(ftruncate(&memory, 100).is_err());
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert!(fallocate(&memory, hole, 0, 4_096).is_err());
        assert_eq!(WritableMapping::new(&memory).unwrap_err().kind(), ErrorKind::PermissionDenied);
        drop(memory);
        assert_eq!(&mapping[..], b"for ever");
    }

    fn memory_that_can_be_written_to_is_never_plain_bytes() {
        let memory = shared_memory::create(65_536).unwrap();
        assert_eq!(FrozenMapping::new(&memory).unwrap_err().kind(), ErrorKind::InvalidInput);
        // Others may have it mapped already.
        let writer = WritableMapping::new(&memory).unwrap();
        fcntl_add_seals(&memory, SealFlags::FUTURE_WRITE).unwrap();
        assert!(examine(&memory).unwrap().seals.new_writers);
        assert_eq!(FrozenMapping::new(&memory).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(WritableMapping::new(&memory).unwrap_err().kind(), ErrorKind::PermissionDenied);
        writer.write_at(0, b"as before").unwrap();
    }

    fn a_hole_reads_as_zero_and_kills_nobody() {
        let memory = shared_memory::create(1 << 20).unwrap();
        let mapping = WritableMapping::new(&memory).unwrap();
        mapping.write_at(0, &vec![7; 1 << 20]).unwrap();
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&memory, hole, 4_096, 1 << 19).unwrap();
        let looking = Mapping::new(&memory).unwrap();
        assert_eq!(read(&looking, 4_090, 12), [[7; 6], [0; 6]].concat());
        mapping.write_at(5_000, b"filled again").unwrap();
        assert_eq!(read(&looking, 5_000, 12), b"filled again");
    }

    fn a_descriptor_for_reading_maps_for_reading() {
        let memory = shared_memory::create(65_536).unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
        let reading = File::open(path).unwrap();
        assert_eq!(WritableMapping::new(&reading).unwrap_err().kind(), ErrorKind::PermissionDenied);
        WritableMapping::new(&memory).unwrap().write_at(0, b"seen").unwrap();
        assert_eq!(read(&Mapping::new(&reading).unwrap(), 0, 4), b"seen");
    }

    fn threads_share_a_mapping() {
        let memory = shared_memory::create(65_536).unwrap();
        let mapping = &WritableMapping::new(&memory).unwrap();
        let looking = &Mapping::new(&memory).unwrap();
        std::thread::scope(|scope| {
            for number in 0..4_u8 {
                scope.spawn(move || {
                    // Odd places, so that neighbours share words.
                    let place = 101 * usize::from(number);
                    for round in 0..1_000_u16 {
                        mapping.write_at(8_192 + place, &[round as u8; 101]).unwrap();
                        mapping.word(0).unwrap().fetch_add(1, Ordering::Relaxed);
                        read(looking, 8_192, 404);
                    }
                    mapping.write_at(8_192 + place, &[number; 101]).unwrap();
                });
            }
        });
        assert_eq!(looking.word(0), Some(4_000));
        for number in 0..4_u8 {
            assert_eq!(read(looking, 8_192 + 101 * usize::from(number), 101), [number; 101]);
        }
    }

    /// Before the kernel is asked, which would commit all the memory of this machine and then some.
    fn too_large_a_file_is_an_error() {
        for bytes in [BYTES_MAX + 1, u64::MAX] {
            assert_eq!(shared_memory::create(bytes).unwrap_err().kind(), ErrorKind::FileTooLarge);
        }
    }

    /// Files with nothing in them: only what is touched is committed.
    fn the_largest_file_is_mapped_and_a_larger_one_is_not() {
        let largest = stranger(BYTES_MAX, SealFlags::SHRINK | SealFlags::GROW);
        let mapping = WritableMapping::new(&largest).unwrap();
        mapping.write_at(usize::try_from(BYTES_MAX).unwrap() - 4, b"last").unwrap();
        let larger = stranger(BYTES_MAX + 1, SealFlags::SHRINK | SealFlags::GROW);
        assert_eq!(Mapping::new(&larger).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Against a plain array: any offset, any length, any neighbours.
    #[test]
    fn copies_land_where_they_should(
        writes in prop::collection::vec((0_usize..300, prop::collection::vec(any::<u8>(), 0..100)), 1..8),
        looks in prop::collection::vec((0_usize..300, 0_usize..100), 1..4),
    ) {
        let memory = shared_memory::create(401).unwrap();
        let mapping = WritableMapping::new(&memory).unwrap();
        let mut model = [0; 401];
        for (offset, bytes) in writes {
            mapping.write_at(offset, &bytes).unwrap();
            model[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        let looking = Mapping::new(&memory).unwrap();
        for (offset, length) in looks {
            prop_assert_eq!(read(&looking, offset, length), &model[offset..offset + length]);
        }
    }
}
