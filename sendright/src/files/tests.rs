//! The service and its client on one reactor: what each request does, what is refused, and what ends when.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path as HostPath;

use ring::{Executor, Message, Reactor};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use seqpacket::{CallError, Object, Pairs, PlainObject};
use tempfile::TempDir;
use testing::on_each_driver;

use super::client::{Directory, Meter, Opened, Trouble};
use super::server::{Lease, Rights, Service};
use super::wire::{
    self, Access, CURSOR_START, FileRequest, Kind, LinkRequest, Moment, NewTime, NewTimes, Onto, Path, Place,
    Refusal, Request, Target, View,
};

/// A service with one grant, and somebody who holds it.
struct Stage {
    executor: Executor,
    folder: TempDir,
    service: Service,
    root: OwnedFd,
    grant: Lease,
}

const OBJECTS_MAX: usize = 32;

impl Stage {
    fn new(reactor: &Reactor) -> Stage {
        let executor = Executor::new(reactor);
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("tree/sub/deep")).unwrap();
        fs::write(folder.path().join("tree/one"), "first").unwrap();
        fs::write(folder.path().join("tree/sub/two"), "second").unwrap();
        fs::write(folder.path().join("secret"), "not yours").unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder.path().join("tree"), flags, Mode::empty()).unwrap();
        let service = Service::new(&executor, &root, OBJECTS_MAX);
        Stage { executor, folder, service, root, grant: Lease::new(OBJECTS_MAX) }
    }

    fn tree(&self, path: &str) -> std::path::PathBuf {
        self.folder.path().join("tree").join(path)
    }

    fn holder(&self, rights: Rights) -> Directory {
        let address = self.service.give(&self.root, Path::HERE, rights, &self.grant).unwrap();
        self.hold(address)
    }

    fn hold(&self, address: OwnedFd) -> Directory {
        let reactor = self.executor.reactor();
        Directory::from_fd(&Pairs::new(reactor, 0), reactor, address, &Meter::new()).unwrap()
    }

    /// An object that is spoken to by hand.
    fn raw(&self, rights: Rights) -> Object {
        let address = self.service.give(&self.root, Path::HERE, rights, &self.grant).unwrap();
        Object::from_fd(self.executor.reactor(), address).unwrap()
    }

    fn ask(&self, object: &Object, request: Request<'_>, passed: Option<OwnedFd>) -> Vec<u8> {
        let mut message = Message::new(request.encode());
        passed.into_iter().for_each(|passed| message.push_descriptor(passed));
        self.executor.block_on(object.call(message)).unwrap().into_bytes()
    }

    fn open_file(&self, directory: &Directory, path: &str) -> PlainObject {
        // By hand: the client's file can only be opened for reading.
        let _ = directory;
        let object = self.raw(Rights::Writable);
        let request = Request::Open { path: at(path) };
        let mut answer = self.executor.block_on(object.call(request.encode())).unwrap();
        assert!(wire::parse_opened(answer.bytes()).unwrap().is_ok());
        PlainObject::from_fd(self.executor.reactor(), answer.take_descriptor().unwrap()).unwrap()
    }

    fn ask_plain(&self, object: &PlainObject, request: &[u8]) -> Vec<u8> {
        self.executor.block_on(object.call(request)).unwrap().into_bytes()
    }

    /// Everybody has let go.
    fn ends(self) {
        self.executor.block_on(self.service.idle());
        ring::closer_idle();
    }
}

fn at(path: &str) -> Path<'_> {
    Path::new(path.as_bytes()).unwrap()
}

fn place(path: &str) -> Place<'_> {
    Place::new(path.as_bytes()).unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Trouble>) -> Refusal {
    match result {
        Err(Trouble::Refused(refused)) => refused.refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn refusal_of(answer: &[u8]) -> Refusal {
    wire::parse_done(answer).unwrap().unwrap_err().refusal
}

fn text(fd: OwnedFd) -> String {
    let mut text = String::new();
    File::from(fd).read_to_string(&mut text).unwrap();
    text
}

fn names(stage: &Stage, directory: &Directory, path: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut cursor = CURSOR_START;
    loop {
        let names = stage.executor.block_on(directory.page(at(path), cursor)).unwrap();
        let page = names.page().unwrap();
        all.extend(page.entries().map(|entry| String::from_utf8_lossy(entry.name.bytes()).into_owned()));
        match page.next_cursor() {
            Some(next) => cursor = next,
            None => break,
        }
    }
    all.sort();
    all
}

on_each_driver! {
    fn a_directory_is_listed_opened_and_read(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::ReadOnly);
        assert_eq!(names(&stage, &root, ""), ["one", "sub"]);
        assert_eq!(names(&stage, &root, "sub"), ["deep", "two"]);
        let (fd, size_bytes) = stage.executor.block_on(root.content(place("sub/two"), Access::Read)).unwrap();
        assert_eq!((text(fd).as_str(), size_bytes), ("second", 6));
        let sub = match stage.executor.block_on(root.open(at("sub"))).unwrap() {
            Opened::Directory(sub) => sub,
            other => panic!("{other:?}"),
        };
        assert_eq!(names(&stage, &sub, ""), ["deep", "two"]);
        match stage.executor.block_on(sub.open(at("two"))).unwrap() {
            Opened::File(file) => assert_eq!(text(stage.executor.block_on(file.open()).unwrap()), "second"),
            other => panic!("{other:?}"),
        }
        drop((root, sub));
        stage.ends();
    }

    fn a_directory_can_be_changed_in_every_way(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::Writable);
        let run = |change| stage.executor.block_on::<std::pin::Pin<Box<dyn Future<Output = _>>>>(change);
        let done: Result<(), Trouble> = run(Box::pin(async {
            root.make_directory(place("sub/new"), 0o750).await?;
            root.make_symlink(place("sub/new/link"), Target::new(b"../two").unwrap()).await?;
            root.rename(place("sub/two"), place("sub/new/three")).await?;
            root.link(place("one"), place("sub/new/uno")).await?;
            root.unlink(place("one")).await?;
            root.remove_directory(place("sub/deep")).await?;
            root.set_mode(at("sub/new/uno"), 0o1600).await?;
            let modified = NewTime::At(Moment::new(-5, 7));
            root.set_times(at("sub/new"), NewTimes { accessed: NewTime::Unchanged, modified }).await
        }));
        done.unwrap();
        assert_eq!(names(&stage, &root, ""), ["sub"]);
        assert_eq!(names(&stage, &root, "sub"), ["new"]);
        assert_eq!(names(&stage, &root, "sub/new"), ["link", "three", "uno"]);
        assert_eq!(fs::read_link(stage.tree("sub/new/link")).unwrap(), HostPath::new("../two"));
        let new = fs::metadata(stage.tree("sub/new")).unwrap();
        assert_eq!((new.mode() & 0o7777, new.mtime(), new.mtime_nsec()), (0o750, -5, 7));
        assert_eq!(fs::metadata(stage.tree("sub/new/uno")).unwrap().mode() & 0o7777, 0o1600);
        assert_eq!(fs::read_to_string(stage.tree("sub/new/uno")).unwrap(), "first");
        drop(root);
        stage.ends();
    }

    fn a_read_only_directory_changes_nothing(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let object = stage.raw(Rights::ReadOnly);
        let times = NewTimes { accessed: NewTime::Now, modified: NewTime::Now };
        let (one, new) = (place("one"), place("new"));
        let changes = [
            Request::Content { access: Access::Write, path: one },
            Request::Content { access: Access::ReadWrite, path: one },
            Request::Create { mode: 0o644, onto: Onto::Anything, path: one },
            Request::MakeDirectory { mode: 0o755, path: new },
            Request::MakeSymlink { path: new, target: Target::new(b"x").unwrap() },
            Request::Rename { from: one, to: new },
            Request::Link { from: one, to: new },
            Request::Unlink { path: one },
            Request::RemoveDirectory { path: place("sub/deep") },
            Request::SetMode { mode: 0o600, path: at("one") },
            Request::SetTimes { times, path: at("one") },
            // What is not there is refused for the same reason: nobody looks.
            Request::Unlink { path: place("nothing/here") },
        ];
        for request in changes {
            assert_eq!(refusal_of(&stage.ask(&object, request, None)), Refusal::ReadOnly, "{request:?}");
        }
        // What comes of it may do no more: a directory and a file.
        let opened = |path: &str| {
            let answer = stage.executor.block_on(object.call(Request::Open { path: at(path) }.encode()));
            answer.unwrap().take_descriptor().unwrap()
        };
        let sub = Object::from_fd(reactor, opened("sub")).unwrap();
        let unlink = Request::Unlink { path: place("two") };
        assert_eq!(refusal_of(&stage.ask(&sub, unlink, None)), Refusal::ReadOnly);
        let file = PlainObject::from_fd(reactor, opened("one")).unwrap();
        let of_files = [
            FileRequest::Open(Access::Write),
            FileRequest::Open(Access::ReadWrite),
            FileRequest::SetMode(0o600),
            FileRequest::SetTimes(times),
        ];
        for request in of_files {
            let answer = stage.ask_plain(&file, &request.encode());
            assert_eq!(refusal_of(&answer), Refusal::ReadOnly, "{request:?}");
        }
        assert_eq!(fs::read_to_string(stage.tree("one")).unwrap(), "first");
        drop((object, sub, file));
        stage.ends();
    }

    fn a_read_only_view_of_a_writable_directory_is_read_only(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::Writable);
        let view = View { read_only: true, leashed: false };
        let (address, leash) = stage.executor.block_on(root.view(at("sub"), view)).unwrap();
        assert!(leash.is_none());
        let narrow = stage.hold(address);
        assert_eq!(names(&stage, &narrow, ""), ["deep", "two"]);
        let unlinked = stage.executor.block_on(narrow.unlink(place("two")));
        assert_eq!(refusal(unlinked), Refusal::ReadOnly);
        // A view of a view is no way back.
        let wide = View { read_only: false, leashed: false };
        let (address, _) = stage.executor.block_on(narrow.view(Path::HERE, wide)).unwrap();
        let again = stage.hold(address);
        assert_eq!(refusal(stage.executor.block_on(again.unlink(place("two")))), Refusal::ReadOnly);
        drop((root, narrow, again));
        stage.ends();
    }

    fn a_leash_that_is_let_go_takes_back_all_that_came_of_it(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::ReadOnly);
        let view = View { read_only: false, leashed: true };
        let (address, leash) = stage.executor.block_on(root.view(Path::HERE, view)).unwrap();
        let lent = stage.hold(address);
        let Opened::Directory(sub) = stage.executor.block_on(lent.open(at("sub"))).unwrap() else { panic!() };
        let Opened::File(file) = stage.executor.block_on(sub.open(at("two"))).unwrap() else { panic!() };
        drop(leash);
        stage.executor.block_on(async {
            while lent.stat(Path::HERE).await.is_ok() {
                reactor.sleep(std::time::Duration::from_millis(1)).await;
            }
            let is_gone = |error: &CallError| matches!(error, CallError::Gone | CallError::Dropped);
            let gone = |trouble: Trouble| matches!(trouble, Trouble::Call(error) if is_gone(&error));
            assert!(gone(sub.stat(Path::HERE).await.unwrap_err()));
            assert!(gone(file.open().await.unwrap_err()));
            root.stat(Path::HERE).await.unwrap();
        });
        drop((root, lent, sub, file));
        stage.ends();
    }

    fn a_grant_taken_back_takes_all_that_came_of_it_and_nothing_else(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let (anne, bert) = (stage.grant.below(8), stage.grant.below(8));
        let give = |lease: &Lease| {
            stage.service.give(&stage.root, Path::HERE, Rights::Writable, lease).unwrap()
        };
        let (annes, berts) = (stage.hold(give(&anne)), stage.hold(give(&bert)));
        let opened = stage.executor.block_on(annes.open(at("sub"))).unwrap();
        let Opened::Directory(sub) = opened else { panic!("{opened:?}") };
        let Opened::File(file) = stage.executor.block_on(sub.open(at("two"))).unwrap() else { panic!() };
        let draft = stage.executor.block_on(annes.create(place("half"), 0o644, Onto::Nothing)).unwrap();
        // A grant of its holder's own, by the library's way: it goes through the same object.
        let passed_on = stage.hold(stage.executor.block_on(annes.grant()).unwrap());
        let (opened, _) = stage.executor.block_on(annes.content(place("one"), Access::Read)).unwrap();

        anne.end();

        stage.executor.block_on(async {
            for directory in [&annes, &sub, &passed_on] {
                assert!(matches!(directory.stat(Path::HERE).await, Err(Trouble::Call(_))));
            }
            assert!(matches!(file.open().await, Err(Trouble::Call(_))));
            assert!(matches!(draft.keep().await, Err(Trouble::Call(_))));
            berts.stat(Path::HERE).await.unwrap();
        });
        assert_eq!(text(opened), "first", "what was opened before stays open");
        assert_eq!(names(&stage, &berts, ""), ["one", "sub"], "and a draft is gone");
        drop((annes, berts, sub, file, passed_on));
        stage.ends();
    }

    fn nothing_outside_is_reached_whatever_is_asked(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        symlink("../secret", stage.tree("out")).unwrap();
        symlink("..", stage.tree("up")).unwrap();
        symlink("/", stage.tree("root")).unwrap();
        symlink("/proc/self/root", stage.tree("magic")).unwrap();
        symlink("sub", stage.tree("inside")).unwrap();
        let root = stage.holder(Rights::Writable);
        stage.executor.block_on(async {
            for link in ["out", "inside", "up", "root", "magic"] {
                let content = root.content(place(link), Access::Read).await;
                assert_eq!(refusal(content), Refusal::Link, "{link}");
                assert!(matches!(root.open(at(link)).await.unwrap(), Opened::Link), "{link}");
                assert_eq!(root.stat(at(link)).await.unwrap().kind, Kind::Symlink, "{link}");
            }
            for path in ["up/secret", "root/etc/passwd", "magic/etc/passwd", "inside/two", "up/tree/one"] {
                assert_eq!(refusal(root.content(place(path), Access::Read).await), Refusal::Link, "{path}");
                assert_eq!(refusal(root.stat(at(path)).await), Refusal::Link, "{path}");
                assert_eq!(refusal(root.unlink(place(path)).await), Refusal::Link, "{path}");
                assert_eq!(refusal(root.page(at(path), 0).await), Refusal::Link, "{path}");
                let created = root.create(place(path), 0o644, Onto::Anything).await;
                assert_eq!(refusal(created), Refusal::Link, "{path}");
            }
            assert_eq!(refusal(root.set_mode(at("out"), 0o777).await), Refusal::Link);
            assert_eq!(root.read_link(place("out")).await.unwrap(), b"../secret");
        });
        // What is no path is refused before anything is looked at.
        let object = stage.raw(Rights::Writable);
        for path in ["..", "../secret", "/etc/passwd", "sub/../../secret", "./one", "sub//two", "sub/"] {
            let bytes = [&[4][..], path.as_bytes()].concat();
            let answer = stage.executor.block_on(object.call(bytes)).unwrap();
            assert_eq!(refusal_of(answer.bytes()), Refusal::BadRequest, "{path}");
        }
        assert_eq!(fs::metadata(stage.folder.path().join("secret")).unwrap().mode() & 0o777, 0o644);
        drop((root, object));
        stage.ends();
    }

    fn a_link_that_takes_the_place_of_a_directory_leads_nowhere(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::ReadOnly);
        let Opened::File(file) = stage.executor.block_on(root.open(at("sub/two"))).unwrap() else { panic!() };
        let Opened::Directory(sub) = stage.executor.block_on(root.open(at("sub"))).unwrap() else { panic!() };
        fs::write(stage.folder.path().join("two"), "outside").unwrap();
        fs::rename(stage.tree("sub"), stage.tree("moved")).unwrap();
        symlink("..", stage.tree("sub")).unwrap();
        stage.executor.block_on(async {
            assert_eq!(refusal(root.content(place("sub/two"), Access::Read).await), Refusal::Link);
            let opened = file.open().await;
            assert!(matches!(refusal(opened), Refusal::Link | Refusal::Changed));
            // Who holds the directory itself goes on, wherever it is.
            assert_eq!(text(sub.content(place("two"), Access::Read).await.unwrap().0), "second");
        });
        // Moved out of the tree, it is still what was given; what is beside it there is out of reach.
        fs::rename(stage.tree("moved"), stage.folder.path().join("moved")).unwrap();
        assert_eq!(names(&stage, &sub, ""), ["deep", "two"]);
        drop((root, file, sub));
        stage.ends();
    }

    fn a_file_that_was_replaced_is_not_the_file(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::Writable);
        let file = stage.open_file(&root, "one");
        fs::write(stage.tree("other"), "impostor").unwrap();
        fs::rename(stage.tree("other"), stage.tree("one")).unwrap();
        let times = NewTimes { accessed: NewTime::Now, modified: NewTime::Now };
        let requests = [
            FileRequest::Open(Access::Read),
            FileRequest::Open(Access::ReadWrite),
            FileRequest::Stat,
            FileRequest::SetMode(0o777),
            FileRequest::SetTimes(times),
        ];
        for request in requests {
            let answer = stage.ask_plain(&file, &request.encode());
            assert_eq!(refusal_of(&answer), Refusal::Changed, "{request:?}");
        }
        fs::remove_file(stage.tree("one")).unwrap();
        rustix::fs::mknodat(CWD, stage.tree("one"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let answer = stage.ask_plain(&file, &FileRequest::Open(Access::Read).encode());
        assert_eq!(refusal_of(&answer), Refusal::Changed, "a pipe, and nobody waited for its writer");
        drop((root, file));
        stage.ends();
    }

    fn a_file_object_opens_tells_and_changes(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::Writable);
        let file = stage.open_file(&root, "one");
        let request = FileRequest::Open(Access::ReadWrite).encode();
        let mut answer = stage.executor.block_on(file.call(request)).unwrap();
        assert_eq!(wire::parse_content(answer.bytes()), Ok(Ok(5)));
        File::from(answer.take_descriptor().unwrap()).write_all(b"FIRST").unwrap();
        assert_eq!(fs::read_to_string(stage.tree("one")).unwrap(), "FIRST");
        let done = stage.ask_plain(&file, &FileRequest::SetMode(0o640).encode());
        assert_eq!(wire::parse_done(&done), Ok(Ok(())));
        let accessed = NewTime::At(Moment::new(1, 2));
        let times = FileRequest::SetTimes(NewTimes { accessed, modified: NewTime::Unchanged });
        assert_eq!(wire::parse_done(&stage.ask_plain(&file, &times.encode())), Ok(Ok(())));
        let told = stage.ask_plain(&file, &FileRequest::Stat.encode());
        let told = wire::parse_attributes(&told).unwrap().unwrap();
        let is = fs::metadata(stage.tree("one")).unwrap();
        assert_eq!((told.kind, told.mode, told.inode), (Kind::File, 0o640, is.ino()));
        assert_eq!((told.accessed, told.size_bytes), (Moment::new(1, 2), 5));
        assert_eq!((told.links, told.uid, told.gid, told.device), (1, is.uid(), is.gid(), is.dev()));
        let nonsense = stage.ask_plain(&file, b"nonsense");
        assert_eq!(refusal_of(&nonsense), Refusal::BadRequest);
        drop((root, file));
        stage.ends();
    }

    fn a_link_object_is_read_and_not_followed(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        symlink("\u{fffd}/nowhere", stage.tree("link")).unwrap();
        let link = stage.open_file(&stage.holder(Rights::Writable), "link");
        let target = stage.ask_plain(&link, &LinkRequest::Read.encode());
        assert_eq!(wire::parse_target(&target), Ok(Ok("\u{fffd}/nowhere".as_bytes())));
        let told = stage.ask_plain(&link, &LinkRequest::Stat.encode());
        assert_eq!(wire::parse_attributes(&told).unwrap().unwrap().kind, Kind::Symlink);
        assert_eq!(refusal_of(&stage.ask_plain(&link, b"open")), Refusal::BadRequest);
        drop(link);
        stage.ends();
    }

    fn set_id_bits_are_not_given(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::Writable);
        for mode in [0o4755, 0o2755, 0o6755] {
            stage.executor.block_on(async {
                assert_eq!(refusal(root.set_mode(at("one"), mode).await), Refusal::SetId);
                assert_eq!(refusal(root.make_directory(place("new"), mode).await), Refusal::SetId);
                assert_eq!(refusal(root.create(place("new"), mode, Onto::Nothing).await), Refusal::SetId);
            });
            let file = stage.open_file(&root, "one");
            let answer = stage.ask_plain(&file, &FileRequest::SetMode(mode).encode());
            assert_eq!(refusal_of(&answer), Refusal::SetId);
            // Whoever writes a draft may own it, and ask the kernel.
            let draft = stage.executor.block_on(root.create(place("new"), 0o755, Onto::Nothing)).unwrap();
            rustix::fs::fchmod(&draft.file, Mode::from_raw_mode(mode)).unwrap();
            assert_eq!(refusal(stage.executor.block_on(draft.keep())), Refusal::SetId);
        }
        assert_eq!(names(&stage, &root, ""), ["one", "sub"]);
        assert_eq!(fs::metadata(stage.tree("one")).unwrap().mode() & 0o7000, 0);
        drop(root);
        stage.ends();
    }

    fn pipes_and_devices_hold_up_nobody(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        rustix::fs::mknodat(CWD, stage.tree("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(stage.tree("socket")).unwrap();
        let null = rustix::fs::makedev(1, 3);
        let kind = FileType::CharacterDevice;
        let device = rustix::fs::mknodat(CWD, stage.tree("device"), kind, Mode::RWXU, null);
        let mut odd = vec!["pipe", "socket"];
        // Only root may make one.
        odd.extend(device.is_ok().then_some("device"));
        let root = stage.holder(Rights::Writable);
        for name in odd {
            stage.executor.block_on(async {
                for access in [Access::Read, Access::Write, Access::ReadWrite] {
                    let content = root.content(place(name), access).await;
                    assert_eq!(refusal(content), Refusal::WrongKind, "{name}, {access:?}");
                }
                assert_eq!(refusal(root.open(at(name)).await), Refusal::WrongKind, "{name}");
                assert!(root.stat(at(name)).await.is_ok(), "{name} can be looked at");
            });
        }
        let content = stage.executor.block_on(root.content(place("sub"), Access::Read));
        assert_eq!(refusal(content), Refusal::WrongKind);
        drop(root);
        stage.ends();
    }

    fn a_draft_is_seen_whole_or_not_at_all(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::Writable);
        let draft = stage.executor.block_on(root.create(place("sub/new"), 0o640, Onto::Nothing)).unwrap();
        File::from(draft.file.try_clone().unwrap()).write_all(b"written").unwrap();
        assert_eq!(names(&stage, &root, "sub"), ["deep", "two"]);
        stage.executor.block_on(draft.keep()).unwrap();
        assert_eq!(fs::read_to_string(stage.tree("sub/new")).unwrap(), "written");
        assert_eq!(fs::metadata(stage.tree("sub/new")).unwrap().mode() & 0o777, 0o640);

        // In place of what is there, whole.
        let draft = stage.executor.block_on(root.create(place("sub/new"), 0o600, Onto::Anything)).unwrap();
        File::from(draft.file.try_clone().unwrap()).write_all(b"again").unwrap();
        assert_eq!(fs::read_to_string(stage.tree("sub/new")).unwrap(), "written");
        stage.executor.block_on(draft.keep()).unwrap();
        assert_eq!(fs::read_to_string(stage.tree("sub/new")).unwrap(), "again");
        assert_eq!(names(&stage, &root, "sub"), ["deep", "new", "two"], "nothing else is left");

        // Given up.
        let draft = stage.executor.block_on(root.create(place("sub/no"), 0o600, Onto::Nothing)).unwrap();
        drop(draft);
        // Refused at once, and at the end if somebody was faster.
        let create = |path| stage.executor.block_on(root.create(place(path), 0o600, Onto::Nothing));
        assert_eq!(refusal(create("sub/new")), Refusal::Exists);
        let draft = create("sub/fast").unwrap();
        fs::write(stage.tree("sub/fast"), "faster").unwrap();
        assert_eq!(refusal(stage.executor.block_on(draft.keep())), Refusal::Exists);
        assert_eq!(fs::read_to_string(stage.tree("sub/fast")).unwrap(), "faster");
        // A directory is not replaced.
        let draft = stage.executor.block_on(root.create(place("sub"), 0o600, Onto::Anything)).unwrap();
        assert_eq!(refusal(stage.executor.block_on(draft.keep())), Refusal::WrongKind);
        assert_eq!(names(&stage, &root, "sub"), ["deep", "fast", "new", "two"]);
        assert_eq!(names(&stage, &root, ""), ["one", "sub"]);
        drop(root);
        stage.ends();
    }

    fn what_is_renamed_goes_where_a_directory_that_was_passed_is(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let give = |path, rights| stage.service.give(&stage.root, at(path), rights, &stage.grant).unwrap();
        let sub = Object::from_fd(reactor, give("sub", Rights::Writable)).unwrap();
        let deep = give("sub/deep", Rights::Writable);
        let deep_again = deep.try_clone().unwrap();
        let rename = Request::Rename { from: place("two"), to: place("zwei") };
        assert_eq!(wire::parse_done(&stage.ask(&sub, rename, Some(deep))), Ok(Ok(())));
        assert_eq!(fs::read_to_string(stage.tree("sub/deep/zwei")).unwrap(), "second");
        fs::write(stage.tree("sub/three"), "third").unwrap();
        let link = Request::Link { from: place("three"), to: place("drei") };
        let answer = stage.ask(&sub, link, Some(deep_again.try_clone().unwrap()));
        assert_eq!(wire::parse_done(&answer), Ok(Ok(())));
        assert_eq!(fs::read_to_string(stage.tree("sub/deep/drei")).unwrap(), "third");

        // What may not be written to is no place for anything; nor is what is not of this service, or gone.
        let move_three = Request::Rename { from: place("three"), to: place("x") };
        let read_only = give("sub/deep", Rights::ReadOnly);
        assert_eq!(refusal_of(&stage.ask(&sub, move_three, Some(read_only))), Refusal::ReadOnly);
        let (stranger, _mailbox) = seqpacket::object(reactor).unwrap();
        let stranger = stranger.share().unwrap();
        assert_eq!(refusal_of(&stage.ask(&sub, move_three, Some(stranger))), Refusal::Stranger);
        let no_socket = File::open("/dev/null").unwrap().into();
        assert_eq!(refusal_of(&stage.ask(&sub, move_three, Some(no_socket))), Refusal::Stranger);
        let lent = stage.grant.part();
        let taken_back = stage.service.give(&stage.root, at("sub/deep"), Rights::Writable, &lent).unwrap();
        lent.end();
        assert_eq!(refusal_of(&stage.ask(&sub, move_three, Some(taken_back))), Refusal::Stranger);
        assert!(stage.tree("sub/three").exists());
        drop((sub, deep_again));
        stage.ends();
    }

    fn one_holder_leaves_objects_to_others(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let greedy = stage.grant.below(4);
        let address = stage.service.give(&stage.root, Path::HERE, Rights::Writable, &greedy).unwrap();
        let directory = stage.hold(address);
        let mut held = Vec::new();
        for _ in 1..4 {
            held.push(stage.executor.block_on(directory.open(at("sub"))).unwrap());
        }
        stage.executor.block_on(async {
            assert_eq!(refusal(directory.open(at("one")).await), Refusal::Busy);
            assert_eq!(refusal(directory.view(Path::HERE, View::default()).await), Refusal::Busy);
            assert_eq!(refusal(directory.create(place("x"), 0o600, Onto::Nothing).await), Refusal::Busy);
            directory.content(place("one"), Access::Read).await.unwrap();
        });
        let other = stage.holder(Rights::ReadOnly);
        stage.executor.block_on(other.open(at("sub"))).unwrap();
        held.pop();
        stage.executor.block_on(async {
            while directory.open(at("one")).await.is_err() {
                reactor.sleep(std::time::Duration::from_millis(1)).await;
            }
        });
        drop((directory, held, other));
        stage.ends();
    }

    /// All who hold one address can do to it what they like, and to nobody else's.
    fn whatever_a_holder_sets_on_a_directory_its_files_are_read_and_others_too(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let other = stage.holder(Rights::ReadOnly);
        let address = stage.service.give(&stage.root, Path::HERE, Rights::ReadOnly, &stage.grant).unwrap();
        let copy = address.try_clone().unwrap();
        let directory = stage.hold(address);
        testing::meddle(&copy, |what| {
            for directory in [&directory, &other] {
                let content = stage.executor.block_on(directory.content(place("one"), Access::Read));
                assert!(content.is_ok(), "{what}");
            }
        });
        drop((directory, other, copy));
        stage.ends();
    }

    fn seventy_thousand_descriptors_at_a_directory_are_closed_and_others_use_theirs(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let other = stage.holder(Rights::ReadOnly);
        let address = stage.service.give(&stage.root, Path::HERE, Rights::ReadOnly, &stage.grant).unwrap();
        testing::count_apart();
        assert!(testing::park(&address, b"c") > 0);
        let content = stage.executor.block_on(other.content(place("one"), Access::Read));
        assert!(content.is_ok());
        let late = stage.hold(address);
        let content = stage.executor.block_on(late.content(place("one"), Access::Read));
        assert!(content.is_ok());
        drop((late, other));
        stage.ends();
    }

    fn all_holders_together_have_as_many_objects_as_there_are(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::ReadOnly);
        let mut held = Vec::new();
        for _ in 1..OBJECTS_MAX {
            held.push(stage.executor.block_on(root.open(at("one"))).unwrap());
        }
        assert_eq!(refusal(stage.executor.block_on(root.open(at("one")))), Refusal::Busy);
        assert_eq!(stage.service.done().objects, OBJECTS_MAX);
        drop((root, held));
        stage.ends();
    }

    fn a_large_directory_comes_in_pages(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let many: Vec<String> = (0..1_500).map(|number| format!("{number:0>40}")).collect();
        many.iter().for_each(|name| drop(File::create(stage.tree("sub/deep").join(name)).unwrap()));
        let root = stage.holder(Rights::ReadOnly);
        let first = stage.executor.block_on(root.page(at("sub/deep"), CURSOR_START)).unwrap();
        assert!(first.page().unwrap().next_cursor().is_some());
        assert_eq!(names(&stage, &root, "sub/deep"), many);
        drop(root);
        stage.ends();
    }

    fn names_may_be_of_any_bytes(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let name = b"\xff\x1b[31m\n \\";
        let root = stage.holder(Rights::Writable);
        stage.executor.block_on(async {
            root.make_directory(Place::new(name).unwrap(), 0o755).await.unwrap();
            let names = root.page(Path::HERE, CURSOR_START).await.unwrap();
            assert!(names.page().unwrap().entries().any(|entry| entry.name.bytes() == name));
        });
        assert!(stage.folder.path().join("tree").join(std::ffi::OsStr::from_bytes(name)).is_dir());
        drop(root);
        stage.ends();
    }

    fn what_cannot_be_read_is_refused_and_counted_against_nobody(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let object = stage.raw(Rights::Writable);
        for bytes in [&b""[..], b"\0", b"\x63one", b"\x01", b"\x09\xff\xffone", b"\x0d\xff\xff\xff\xffone"] {
            let Ok(answer) = stage.executor.block_on(object.call(bytes)) else { continue };
            assert_eq!(refusal_of(answer.bytes()), Refusal::BadRequest, "{bytes:?}");
        }
        assert_eq!(wire::parse_attributes(&stage.ask(&object, Request::Stat { path: Path::HERE }, None))
            .unwrap().unwrap().kind, Kind::Directory);
        drop(object);
        stage.ends();
    }

    fn what_there_is_not_is_told_from_what_may_not_be(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::Writable);
        stage.executor.block_on(async {
            assert_eq!(refusal(root.content(place("no"), Access::Read).await), Refusal::NotFound);
            assert_eq!(refusal(root.stat(at("one/two")).await), Refusal::WrongKind);
            assert_eq!(refusal(root.page(at("one"), 0).await), Refusal::WrongKind);
            assert_eq!(refusal(root.make_directory(place("sub"), 0o755).await), Refusal::Exists);
            assert_eq!(refusal(root.remove_directory(place("sub")).await), Refusal::NotEmpty);
            assert_eq!(refusal(root.unlink(place("sub")).await), Refusal::WrongKind);
            assert_eq!(refusal(root.remove_directory(place("one")).await), Refusal::WrongKind);
            assert_eq!(refusal(root.read_link(place("one")).await), Refusal::WrongKind);
            assert_eq!(refusal(root.link(place("one"), place("sub")).await), Refusal::Exists);
        });
        drop(root);
        stage.ends();
    }

    /// Counted, since the documentation says so: a file is opened with one message there and one back.
    fn a_file_is_opened_with_two_messages(reactor: &Reactor) {
        const OPENS: u64 = 100;
        let stage = Stage::new(reactor);
        let root = stage.holder(Rights::ReadOnly);
        stage.executor.block_on(async {
            // Attached, and the file is in the cache.
            root.content(place("sub/two"), Access::Read).await.unwrap();
            // The end of the last packet's way.
            reactor.sleep(std::time::Duration::from_millis(1)).await;
            let before = reactor.stats();
            for _ in 0..OPENS {
                root.content(place("sub/two"), Access::Read).await.unwrap();
            }
            // Both sides are on this reactor.
            let after = reactor.stats();
            assert_eq!(after.messages_sent - before.messages_sent, 2 * OPENS);
            assert_eq!(after.messages_received - before.messages_received, 2 * OPENS);
            assert_eq!(after.descriptors_sent - before.descriptors_sent, OPENS);
        });
        drop(root);
        stage.ends();
    }

    fn a_directory_that_others_may_not_enter_is_refused(reactor: &Reactor) {
        let stage = Stage::new(reactor);
        fs::set_permissions(stage.tree("sub"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(stage.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        testing::become_nobody();
        let root = stage.holder(Rights::Writable);
        stage.executor.block_on(async {
            assert_eq!(refusal(root.page(at("sub"), 0).await), Refusal::Denied);
            assert_eq!(refusal(root.content(place("sub/two"), Access::Read).await), Refusal::Denied);
            assert_eq!(refusal(root.unlink(place("one")).await), Refusal::Denied);
        });
        drop(root);
        // Nobody may not remove what root has made.
        std::mem::forget(stage.folder);
        stage.executor.block_on(stage.service.idle());
    }
}
