//! What may be under way on a session at one time: four windows and what is taken out of them.
//!
//! This file owns the arithmetic that client and server must do alike. The client reserves before it sends a
//! call and releases when the final frame arrives; the server reserves when the call arrives and releases
//! when the final frame has left. So the server's account never shows more than the client's, and a call that
//! does not fit at the server was sent by a client that does not keep its word. It must never know numbers,
//! frames in flight or who waits for room.

use thiserror::Error;

use crate::wire::{
    EXTENSION_BYTES, HEADER_BYTES, Header, Hello, Kind, Malformed, Opening, REFUSED_BYTES, Resource, Size,
    Windows,
};

/// The windows of one session and what is taken out of them.
///
/// ```
/// use seqpacket::credit::{Account, Cost, Short};
/// use seqpacket::wire::{Hello, Resource, Size, Windows};
///
/// let hello = Hello { windows: Windows { calls: 1, ..Windows::default() }, ..Hello::default() };
/// let mut account = Account::new(hello.windows);
/// let cost = Cost::of_call(&hello.call(7, Size::of_bytes(3)?, Size::of_bytes(64)?, None), &hello);
/// account.try_reserve(cost)?;
/// assert_eq!(account.try_reserve(cost), Err(Short::Now(Resource::Calls)));
/// account.release(cost);
/// assert!(account.is_idle());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Account {
    windows: Windows,
    taken: Cost,
}

impl Account {
    /// An account with nothing taken.
    pub fn new(windows: Windows) -> Account {
        Account { windows, taken: Cost::NOTHING }
    }

    /// Takes `cost` out of the windows, all of it or nothing.
    #[inline]
    pub fn try_reserve(&mut self, cost: Cost) -> Result<(), Short> {
        self.room_for(cost)?;
        self.reserve(cost);
        Ok(())
    }

    /// Takes out what a call takes, if there is room for it, of which both the bytes and the room for the
    /// answer fit the packets of the session.
    #[inline]
    pub(crate) fn reserve_small_call(&mut self, message: Size, room: Size) -> Option<Cost> {
        if !self.has_room_for_small_call(message, room) {
            return None;
        }
        let cost = Cost::of_small_call(message, room);
        self.taken.calls += cost.calls;
        self.taken.bytes += cost.bytes;
        self.taken.descriptors += cost.descriptors;
        self.check();
        Some(cost)
    }

    /// Whether [`reserve_small_call`](Account::reserve_small_call) would take anything.
    #[inline]
    pub(crate) fn has_room_for_small_call(&self, message: Size, room: Size) -> bool {
        let cost = Cost::of_small_call(message, room);
        let Windows { calls, bytes, descriptors, .. } = self.free();
        cost.calls <= calls && cost.bytes <= bytes && cost.descriptors <= descriptors
    }

    /// Takes out what there is [room for](Account::room_for).
    #[inline]
    pub(crate) fn reserve(&mut self, cost: Cost) {
        self.taken.calls += cost.calls;
        self.taken.bytes += cost.bytes;
        self.taken.descriptors += cost.descriptors;
        self.taken.large_bytes += cost.large_bytes;
        self.check();
    }

    /// Whether `cost` would fit, and if not, what is short. A window that `cost` can never fit is named
    /// before one that is only full: waiting for the second would be in vain.
    #[inline]
    pub fn room_for(&self, cost: Cost) -> Result<(), Short> {
        match cost.exceeds(self.free()) {
            None => Ok(()),
            Some(resource) => Err(cost.exceeds(self.windows).map_or(Short::Now(resource), Short::Never)),
        }
    }

    /// Puts back what a call took.
    ///
    /// # Panics
    /// If more is put back than was taken. No peer can bring this about as long as a cost is released once,
    /// by whoever removes the call from its table.
    #[inline]
    pub fn release(&mut self, cost: Cost) {
        assert!(cost.calls <= self.taken.calls, "released more calls than were reserved");
        assert!(cost.bytes <= self.taken.bytes, "released more bytes than were reserved");
        assert!(cost.descriptors <= self.taken.descriptors, "released more descriptors than were reserved");
        assert!(cost.large_bytes <= self.taken.large_bytes, "released more large bytes than were reserved");
        self.taken.calls -= cost.calls;
        self.taken.bytes -= cost.bytes;
        self.taken.descriptors -= cost.descriptors;
        self.taken.large_bytes -= cost.large_bytes;
        self.check();
    }

    /// Replaces the windows by larger ones, as a CREDIT does. Nothing changes if one of them is smaller.
    pub fn grow(&mut self, windows: Windows) -> Result<(), Malformed> {
        if let Some(resource) = Cost::all_of(self.windows).exceeds(windows) {
            return Err(Malformed::WindowShrunk(resource));
        }
        self.windows = windows;
        self.check();
        Ok(())
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.taken.calls == 0
    }

    /// The windows as they are now.
    pub fn windows(&self) -> Windows {
        self.windows
    }

    /// What is under way.
    pub fn taken(&self) -> Cost {
        self.taken
    }

    /// What is left of each window.
    #[inline]
    pub fn free(&self) -> Windows {
        Windows {
            calls: self.windows.calls - self.taken.calls,
            bytes: self.windows.bytes - self.taken.bytes,
            descriptors: self.windows.descriptors - self.taken.descriptors,
            large_bytes: self.windows.large_bytes - self.taken.large_bytes,
        }
    }

    /// What follows from `reserve`, `release` and `grow`, looked at where time does not count.
    fn check(&self) {
        debug_assert!(self.taken.calls <= self.windows.calls);
        debug_assert!(self.taken.bytes <= self.windows.bytes);
        debug_assert!(self.taken.descriptors <= self.windows.descriptors);
        debug_assert!(self.taken.large_bytes <= self.windows.large_bytes);
        // A cost without a call is never made, so an account without calls that still misses something has
        // lost it.
        if self.taken.calls == 0 {
            debug_assert_eq!(self.taken.bytes, 0, "bytes taken by no call");
            debug_assert_eq!(self.taken.descriptors, 0, "descriptors taken by no call");
            debug_assert_eq!(self.taken.large_bytes, 0, "large bytes taken by no call");
        }
    }
}

/// What one call takes out of the windows from its sending to its final frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    calls: u32,
    bytes: u32,
    descriptors: u32,
    large_bytes: u32,
}

impl Cost {
    pub(crate) const NOTHING: Cost = Cost { calls: 0, bytes: 0, descriptors: 0, large_bytes: 0 };

    /// A call or a grant on the session of this HELLO: the frames that open the call and its answer, with
    /// what is in them, and its descriptors. The final frame is never counted shorter than a REFUSED, since
    /// that is what any call may end with. What follows in parts is large, and so is the room for it.
    #[inline]
    pub fn of_call(opening: &Opening, hello: &Hello) -> Cost {
        let room = opening.answer();
        let answer_bytes = match hello.is_large_room(room) {
            true => EXTENSION_BYTES,
            false => room.bytes().max(REFUSED_BYTES),
        };
        let large_room = if hello.is_large_room(room) { room.bytes() as u32 } else { 0 };
        Cost {
            calls: 1,
            // Two packets at most: far from the ends of a u32.
            bytes: (HEADER_BYTES + HEADER_BYTES + answer_bytes) as u32 + opening.header.length,
            // Those of the answer fill the caller's table, which the caller bounds itself.
            descriptors: opening.message().descriptors() as u32,
            // `Size` bounds each by half of a u32.
            large_bytes: opening.total().unwrap_or(0) + large_room,
        }
    }

    /// A call of which both the bytes and the room for the answer fit the packets of the session.
    #[inline]
    fn of_small_call(message: Size, room: Size) -> Cost {
        let bytes = HEADER_BYTES + message.bytes() + HEADER_BYTES + room.bytes().max(REFUSED_BYTES);
        Cost { calls: 1, bytes: bytes as u32, descriptors: message.descriptors() as u32, large_bytes: 0 }
    }

    /// Both together, of calls that are under way beside each other.
    #[inline]
    pub(crate) fn and(self, other: Cost) -> Cost {
        Cost {
            calls: self.calls + other.calls,
            bytes: self.bytes + other.bytes,
            descriptors: self.descriptors + other.descriptors,
            large_bytes: self.large_bytes + other.large_bytes,
        }
    }

    /// What a frame takes, as its receiver sees it; `None` for kinds that take nothing.
    pub fn of(opening: &Opening, hello: &Hello) -> Option<Cost> {
        matches!(opening.header.kind, Kind::Call | Kind::Grant).then(|| Cost::of_call(opening, hello))
    }

    /// A GRANT: no bytes but the frames', on every session.
    pub fn of_grant() -> Cost {
        Cost::of_call(&Header::grant(0).into(), &Hello::default())
    }

    /// Calls: 1 for whatever one frame takes.
    pub fn calls(self) -> u32 {
        self.calls
    }

    /// Bytes.
    pub fn bytes(self) -> u32 {
        self.bytes
    }

    /// Descriptors.
    pub fn descriptors(self) -> u32 {
        self.descriptors
    }

    /// Bytes of large messages.
    pub fn large_bytes(self) -> u32 {
        self.large_bytes
    }

    fn all_of(windows: Windows) -> Cost {
        let Windows { calls, bytes, descriptors, large_bytes } = windows;
        Cost { calls, bytes, descriptors, large_bytes }
    }

    /// The first resource of which this is more than `windows` has.
    #[inline]
    fn exceeds(self, windows: Windows) -> Option<Resource> {
        if self.calls > windows.calls {
            Some(Resource::Calls)
        } else if self.bytes > windows.bytes {
            Some(Resource::Bytes)
        } else if self.descriptors > windows.descriptors {
            Some(Resource::Descriptors)
        } else if self.large_bytes > windows.large_bytes {
            Some(Resource::LargeBytes)
        } else {
            None
        }
    }
}

/// Why a call cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Short {
    /// Not before other calls have ended.
    #[error("no {0} left in the window")]
    Now(Resource),
    /// Not even alone. Only a CREDIT could change that, so waiting is not worth it.
    #[error("more {0} than the window has")]
    Never(Resource),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::wire::{PAYLOAD_BYTES_MAX, Size};

    fn size(bytes: usize, descriptors: usize) -> Size {
        Size::of_bytes(bytes).unwrap().with_descriptors(descriptors).unwrap()
    }

    /// On a session of the usual packets.
    fn cost(message: Size, answer: Size) -> Cost {
        let hello = Hello::default();
        Cost::of_call(&hello.call(9, message, answer, None), &hello)
    }

    #[test]
    fn a_call_costs_both_frames_and_its_own_descriptors() {
        let cost = cost(size(3, 1), size(64, 2));
        assert_eq!((cost.calls(), cost.bytes(), cost.descriptors()), (1, 16 + 3 + 16 + 64, 1));
    }

    #[test]
    fn a_small_call_costs_what_any_call_does() {
        for message in [size(0, 0), size(1, 1), size(64, 64), size(PAYLOAD_BYTES_MAX, 0)] {
            for room in [0, 1, 2, 64, PAYLOAD_BYTES_MAX] {
                let expected = cost(message, size(room, 7));
                let mut account = Account::new(Hello::default().windows);
                assert_eq!(account.reserve_small_call(message, size(room, 7)), Some(expected));
                assert_eq!(account.taken(), expected);
            }
        }
    }

    #[test]
    fn a_small_call_that_does_not_fit_takes_nothing() {
        for (calls, bytes, descriptors, fits) in
            [(1, 200, 2, true), (0, 200, 2, false), (1, 99, 2, false), (1, 100, 2, true), (1, 100, 1, false)]
        {
            let mut account = Account::new(Windows { calls, bytes, descriptors, ..Windows::default() });
            let taken = account.reserve_small_call(size(4, 2), size(64, 0));
            assert_eq!(taken.is_some(), fits);
            assert_eq!(account.taken(), taken.unwrap_or(Cost::NOTHING));
        }
    }

    #[test]
    fn the_widest_window_is_filled_to_the_byte_by_small_calls() {
        let all = Windows { calls: u32::MAX, bytes: u32::MAX, ..Windows::default() };
        let mut account = Account::new(all);
        while account.reserve_small_call(size(PAYLOAD_BYTES_MAX, 0), size(PAYLOAD_BYTES_MAX, 0)).is_some() {}
        assert_eq!(account.free().bytes, u32::MAX % (2 * 102_080));
    }

    #[test]
    fn two_calls_cost_what_each_of_them_does() {
        let both = cost(size(3, 1), size(64, 2)).and(cost(size(150_000, 3), size(5, 0)));
        assert_eq!((both.calls(), both.bytes()), (2, 16 + 3 + 16 + 64 + 32 + 16 + 5));
        assert_eq!((both.descriptors(), both.large_bytes()), (4, 150_000));
    }

    #[test]
    fn a_large_message_costs_its_bytes_apart_and_only_its_opening_among_the_small() {
        let seen = |cost: Cost| (cost.bytes(), cost.large_bytes());
        assert_eq!(seen(cost(size(102_064, 0), size(102_064, 0))), (2 * 102_080, 0));
        assert_eq!(seen(cost(size(102_065, 0), size(64, 0))), (32 + 16 + 64, 102_065));
        assert_eq!(seen(cost(size(3, 0), size(102_065, 0))), (16 + 3 + 32, 102_065));
        assert_eq!(seen(cost(size(1 << 20, 0), size(1 << 21, 0))), (32 + 32, 3 << 20));
        let largest = cost(Size::LARGEST, Size::LARGEST);
        assert_eq!(seen(largest), (64, 2 * crate::wire::MESSAGE_BYTES_MAX as u32));
    }

    #[test]
    fn a_deadline_costs_what_it_takes_in_the_packet() {
        let hello = Hello::default();
        let call = |bytes| {
            let time_left = Some(std::time::Duration::from_secs(1));
            let cost = Cost::of_call(&hello.call(9, size(bytes, 0), size(64, 0), time_left), &hello);
            (cost.bytes(), cost.large_bytes())
        };
        assert_eq!(call(3), (16 + 16 + 3 + 16 + 64, 0));
        assert_eq!(call(102_049), (32 + 16 + 64, 102_049));
    }

    #[test]
    fn the_largest_messages_fit_the_smallest_window_a_hello_may_promise_them() {
        let windows = Windows { calls: 1, bytes: 2 * 102_080, descriptors: 16, large_bytes: 300_000 };
        let hello = Hello { windows, message_bytes_max: 150_000, ..Hello::default() };
        assert_eq!(hello.check(), Ok(()));
        let mut account = Account::new(windows);
        assert_eq!(account.try_reserve(cost(size(150_000, 16), size(150_000, 0))), Ok(()));
        assert_eq!(account.free().large_bytes, 0);
    }

    #[test]
    fn a_call_without_room_for_an_answer_can_still_be_refused() {
        assert_eq!(cost(Size::NONE, Size::NONE).bytes(), 33);
        assert_eq!(cost(Size::NONE, size(1, 0)).bytes(), 33);
        assert_eq!(cost(Size::NONE, size(2, 0)).bytes(), 34);
    }

    #[test]
    fn both_sides_see_the_same_cost() {
        let (message, answer) = (size(5, 1), size(7, 2));
        let seen = |header: Header| Cost::of(&header.into(), &Hello::default());
        assert_eq!(seen(Header::call(9, message, answer)), Some(cost(message, answer)));
        assert_eq!(seen(Header::grant(9)), Some(Cost::of_grant()));
        assert_eq!((Cost::of_grant().bytes(), Cost::of_grant().descriptors()), (33, 0));
    }

    #[test]
    fn frames_that_start_no_call_cost_nothing() {
        let answer = Header::answer_to(9, size(5, 1));
        for header in [Header::cancel(9), Header::dropped(9), Header::part(9, 1), Header::goodbye(), answer] {
            assert_eq!(Cost::of(&header.into(), &Hello::default()), None);
        }
    }

    #[test]
    fn the_largest_call_and_answer_fit_the_smallest_window_a_hello_may_promise() {
        let windows = Windows { calls: 1, bytes: 2 * 102_080, descriptors: 16, large_bytes: 0 };
        let hello = Hello { windows, message_bytes_max: 102_064, ..Hello::default() };
        assert_eq!(hello.check(), Ok(()));
        let mut account = Account::new(hello.windows);
        let largest = cost(size(PAYLOAD_BYTES_MAX, 16), size(PAYLOAD_BYTES_MAX, 0));
        assert_eq!(account.try_reserve(largest), Ok(()));
        let nothing = Windows { calls: 0, bytes: 0, descriptors: 0, large_bytes: 0 };
        assert_eq!(account.free(), nothing);
    }

    #[test]
    fn what_can_never_fit_is_named_before_what_is_only_full() {
        let mut account = Account::new(Windows { calls: 1, bytes: 1_000, descriptors: 2, large_bytes: 0 });
        account.try_reserve(cost(size(10, 0), size(10, 0))).unwrap();
        let fits = cost(size(10, 0), size(10, 0));
        let bytes = cost(size(1_000, 0), size(10, 0));
        let descriptors = cost(size(10, 3), size(10, 1));
        let large = cost(size(102_065, 0), size(10, 1));
        assert_eq!(account.try_reserve(fits), Err(Short::Now(Resource::Calls)));
        assert_eq!(account.try_reserve(bytes), Err(Short::Never(Resource::Bytes)));
        assert_eq!(account.try_reserve(descriptors), Err(Short::Never(Resource::Descriptors)));
        assert_eq!(account.try_reserve(large), Err(Short::Never(Resource::LargeBytes)));
    }

    #[test]
    fn a_window_that_shrinks_changes_nothing() {
        let windows = Windows { calls: 2, bytes: 1_000, descriptors: 2, large_bytes: 9 };
        let mut account = Account::new(windows);
        for (smaller, resource) in [
            (Windows { calls: 1, bytes: 2_000, ..windows }, Resource::Calls),
            (Windows { bytes: 999, ..windows }, Resource::Bytes),
            (Windows { descriptors: 0, ..windows }, Resource::Descriptors),
            (Windows { large_bytes: 8, ..windows }, Resource::LargeBytes),
        ] {
            assert_eq!(account.grow(smaller), Err(Malformed::WindowShrunk(resource)));
            assert_eq!(account.windows(), windows);
        }
        assert_eq!(account.grow(windows), Ok(()));
    }

    #[test]
    #[should_panic(expected = "released more calls")]
    fn a_call_released_twice_is_our_own_mistake() {
        let mut account = Account::new(Windows::default());
        account.try_reserve(Cost::of_grant()).unwrap();
        account.release(Cost::of_grant());
        account.release(Cost::of_grant());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve { message: Size, answer: Size },
        Release(prop::sample::Index),
        Grow(Windows),
    }

    fn any_size() -> impl Strategy<Value = Size> {
        let bytes = prop_oneof![4 => 0..400_usize, 1 => 102_000..110_000_usize];
        (bytes, 0..4_usize).prop_map(|(bytes, descriptors)| size(bytes, descriptors))
    }

    fn any_windows() -> impl Strategy<Value = Windows> {
        (0..6_u32, 0..2_000_u32, 0..12_u32, 0..300_000_u32).prop_map(
            |(calls, bytes, descriptors, large_bytes)| Windows { calls, bytes, descriptors, large_bytes },
        )
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any_size(), any_size()).prop_map(|(message, answer)| Step::Reserve { message, answer }),
            3 => any::<prop::sample::Index>().prop_map(Step::Release),
            1 => any_windows().prop_map(Step::Grow),
        ]
    }

    /// The plainest account there is: a list of what is under way, added up anew for each question.
    struct Model {
        windows: Windows,
        under_way: Vec<Cost>,
    }

    impl Model {
        fn short(&self, cost: Cost) -> Option<Short> {
            let rows = [
                (Resource::Calls, self.windows.calls, Cost::calls as fn(Cost) -> u32),
                (Resource::Bytes, self.windows.bytes, Cost::bytes),
                (Resource::Descriptors, self.windows.descriptors, Cost::descriptors),
                (Resource::LargeBytes, self.windows.large_bytes, Cost::large_bytes),
            ];
            let never = rows.iter().find(|(_, window, of)| of(cost) > *window);
            let now = rows.iter().find(|(_, window, of)| {
                let taken: u64 = self.under_way.iter().map(|cost| u64::from(of(*cost))).sum();
                taken + u64::from(of(cost)) > u64::from(*window)
            });
            never.map(|row| Short::Never(row.0)).or(now.map(|row| Short::Now(row.0)))
        }

        fn grows_to(&self, windows: Windows) -> bool {
            windows.calls >= self.windows.calls
                && windows.bytes >= self.windows.bytes
                && windows.descriptors >= self.windows.descriptors
                && windows.large_bytes >= self.windows.large_bytes
        }
    }

    proptest! {
        #[test]
        fn an_account_agrees_with_a_list(
            windows in any_windows(),
            steps in prop::collection::vec(any_step(), 0..60),
        ) {
            let mut account = Account::new(windows);
            let mut model = Model { windows, under_way: Vec::new() };
            for step in steps {
                match step {
                    Step::Reserve { message, answer } => {
                        let cost = cost(message, answer);
                        prop_assert_eq!(account.try_reserve(cost).err(), model.short(cost));
                        if model.short(cost).is_none() {
                            model.under_way.push(cost);
                        }
                    }
                    Step::Release(_) if model.under_way.is_empty() => {}
                    Step::Release(which) => {
                        let which = which.index(model.under_way.len());
                        account.release(model.under_way.swap_remove(which));
                    }
                    Step::Grow(windows) => {
                        prop_assert_eq!(account.grow(windows).is_ok(), model.grows_to(windows));
                        if model.grows_to(windows) {
                            model.windows = windows;
                        }
                    }
                }
                prop_assert_eq!(account.windows(), model.windows);
                prop_assert_eq!(account.is_idle(), model.under_way.is_empty());
                prop_assert_eq!(account.taken().calls() as usize, model.under_way.len());
            }
            for cost in model.under_way.drain(..) {
                account.release(cost);
            }
            prop_assert_eq!(account.free(), model.windows);
        }

        #[test]
        fn windows_of_any_size_never_overflow(windows in any::<[u32; 4]>()) {
            let [calls, bytes, descriptors, large_bytes] = windows;
            let mut account = Account::new(Windows { calls, bytes, descriptors, large_bytes });
            let largest = cost(Size::LARGEST, Size::LARGEST);
            for _ in 0..100 {
                if account.try_reserve(largest).is_err() {
                    break;
                }
            }
            prop_assert!(account.taken().calls() <= calls);
        }
    }
}
