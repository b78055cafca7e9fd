//! What may be under way on a session at one time: three windows and what is taken out of them.
//!
//! This file owns the arithmetic that client and server must do alike. The client reserves before it sends a
//! call and releases when the final frame arrives; the server reserves when the call arrives and releases
//! when the final frame has left. So the server's account never shows more than the client's, and a call that
//! does not fit at the server was sent by a client that does not keep its word. It must never know numbers,
//! frames in flight or who waits for room.

use thiserror::Error;

use crate::wire::{HEADER_BYTES, Header, Kind, Malformed, REFUSED_BYTES, Resource, Size, Windows};

/// The windows of one session and what is taken out of them.
///
/// ```
/// use seqpacket::credit::{Account, Cost, Short};
/// use seqpacket::wire::{Resource, Size, Windows};
///
/// let mut account = Account::new(Windows { calls: 1, ..Windows::default() });
/// let cost = Cost::of_call(Size::of_bytes(3)?, Size::of_bytes(64)?);
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
    pub fn try_reserve(&mut self, cost: Cost) -> Result<(), Short> {
        self.room_for(cost)?;
        self.taken.calls += cost.calls;
        self.taken.bytes += cost.bytes;
        self.taken.descriptors += cost.descriptors;
        self.check();
        Ok(())
    }

    /// Whether `cost` would fit, and if not, what is short. A window that `cost` can never fit is named
    /// before one that is only full: waiting for the second would be in vain.
    pub fn room_for(&self, cost: Cost) -> Result<(), Short> {
        if let Some(resource) = cost.exceeds(self.windows) {
            return Err(Short::Never(resource));
        }
        if let Some(resource) = cost.exceeds(self.free()) {
            return Err(Short::Now(resource));
        }
        Ok(())
    }

    /// Puts back what a call took.
    ///
    /// # Panics
    /// If more is put back than was taken. No peer can bring this about as long as a cost is released once,
    /// by whoever removes the call from its table.
    pub fn release(&mut self, cost: Cost) {
        assert!(cost.calls <= self.taken.calls, "released more calls than were reserved");
        assert!(cost.bytes <= self.taken.bytes, "released more bytes than were reserved");
        assert!(cost.descriptors <= self.taken.descriptors, "released more descriptors than were reserved");
        self.taken.calls -= cost.calls;
        self.taken.bytes -= cost.bytes;
        self.taken.descriptors -= cost.descriptors;
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
    pub fn free(&self) -> Windows {
        Windows {
            calls: self.windows.calls - self.taken.calls,
            bytes: self.windows.bytes - self.taken.bytes,
            descriptors: self.windows.descriptors - self.taken.descriptors,
        }
    }

    fn check(&self) {
        assert!(self.taken.calls <= self.windows.calls);
        assert!(self.taken.bytes <= self.windows.bytes);
        assert!(self.taken.descriptors <= self.windows.descriptors);
        // A cost without a call is never made, so an account without calls that still misses something has
        // lost it.
        if self.taken.calls == 0 {
            assert_eq!(self.taken.bytes, 0, "bytes taken by no call");
            assert_eq!(self.taken.descriptors, 0, "descriptors taken by no call");
        }
    }
}

/// What one call takes out of the windows from its sending to its final frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    calls: u32,
    bytes: u32,
    descriptors: u32,
}

impl Cost {
    const NOTHING: Cost = Cost { calls: 0, bytes: 0, descriptors: 0 };

    /// A call that carries `message` and has room for `answer`: both frames, both sets of descriptors. The
    /// final frame is never counted shorter than a REFUSED, since that is what any call may end with.
    pub fn of_call(message: Size, answer: Size) -> Cost {
        let frames = HEADER_BYTES + message.bytes() + HEADER_BYTES + answer.bytes().max(REFUSED_BYTES);
        // `Size` bounds both payloads by one packet and both counts by 253: far from the ends of a u32.
        Cost {
            calls: 1,
            bytes: frames as u32,
            // Those of the answer fill the caller's table, which the caller bounds itself.
            descriptors: message.descriptors() as u32,
        }
    }

    /// What a frame takes, as its receiver sees it; `None` for kinds that take nothing.
    pub fn of(header: &Header) -> Option<Cost> {
        matches!(header.kind, Kind::Call | Kind::Grant)
            .then(|| Cost::of_call(header.message(), header.answer()))
    }

    /// A GRANT: no bytes but the frames'.
    pub fn of_grant() -> Cost {
        let header = Header::grant(0);
        Cost::of_call(header.message(), header.answer())
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

    fn all_of(windows: Windows) -> Cost {
        Cost { calls: windows.calls, bytes: windows.bytes, descriptors: windows.descriptors }
    }

    /// The first resource of which this is more than `windows` has.
    fn exceeds(self, windows: Windows) -> Option<Resource> {
        if self.calls > windows.calls {
            Some(Resource::Calls)
        } else if self.bytes > windows.bytes {
            Some(Resource::Bytes)
        } else if self.descriptors > windows.descriptors {
            Some(Resource::Descriptors)
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
    use crate::wire::{Hello, PAYLOAD_BYTES_MAX};

    fn size(bytes: usize, descriptors: usize) -> Size {
        Size::of_bytes(bytes).unwrap().with_descriptors(descriptors).unwrap()
    }

    #[test]
    fn a_call_costs_both_frames_and_its_own_descriptors() {
        let cost = Cost::of_call(size(3, 1), size(64, 2));
        assert_eq!((cost.calls(), cost.bytes(), cost.descriptors()), (1, 16 + 3 + 16 + 64, 1));
    }

    #[test]
    fn a_call_without_room_for_an_answer_can_still_be_refused() {
        assert_eq!(Cost::of_call(Size::NONE, Size::NONE).bytes(), 33);
        assert_eq!(Cost::of_call(Size::NONE, size(1, 0)).bytes(), 33);
        assert_eq!(Cost::of_call(Size::NONE, size(2, 0)).bytes(), 34);
    }

    #[test]
    fn both_sides_see_the_same_cost() {
        let (message, answer) = (size(5, 1), size(7, 2));
        assert_eq!(Cost::of(&Header::call(9, message, answer)), Some(Cost::of_call(message, answer)));
        assert_eq!(Cost::of(&Header::grant(9)), Some(Cost::of_grant()));
        assert_eq!((Cost::of_grant().bytes(), Cost::of_grant().descriptors()), (33, 0));
    }

    #[test]
    fn frames_that_start_no_call_cost_nothing() {
        let answer = Header::answer_to(9, size(5, 1));
        for header in [Header::cancel(9), Header::dropped(9), Header::goodbye(), answer] {
            assert_eq!(Cost::of(&header), None);
        }
    }

    #[test]
    fn the_largest_call_and_answer_fit_the_smallest_window_a_hello_may_promise() {
        let hello =
            Hello { windows: Windows { calls: 1, bytes: 2 * 65_536, descriptors: 16 }, ..Hello::default() };
        assert_eq!(hello.check(), Ok(()));
        let mut account = Account::new(hello.windows);
        let largest = Cost::of_call(size(PAYLOAD_BYTES_MAX, 16), size(PAYLOAD_BYTES_MAX, 0));
        assert_eq!(account.try_reserve(largest), Ok(()));
        assert_eq!(account.free(), Windows { calls: 0, bytes: 0, descriptors: 0 });
    }

    #[test]
    fn what_can_never_fit_is_named_before_what_is_only_full() {
        let mut account = Account::new(Windows { calls: 1, bytes: 1_000, descriptors: 2 });
        account.try_reserve(Cost::of_call(size(10, 0), size(10, 0))).unwrap();
        let fits = Cost::of_call(size(10, 0), size(10, 0));
        let bytes = Cost::of_call(size(1_000, 0), size(10, 0));
        let descriptors = Cost::of_call(size(10, 3), size(10, 1));
        assert_eq!(account.try_reserve(fits), Err(Short::Now(Resource::Calls)));
        assert_eq!(account.try_reserve(bytes), Err(Short::Never(Resource::Bytes)));
        assert_eq!(account.try_reserve(descriptors), Err(Short::Never(Resource::Descriptors)));
    }

    #[test]
    fn a_window_that_shrinks_changes_nothing() {
        let windows = Windows { calls: 2, bytes: 1_000, descriptors: 2 };
        let mut account = Account::new(windows);
        for (smaller, resource) in [
            (Windows { calls: 1, bytes: 2_000, ..windows }, Resource::Calls),
            (Windows { bytes: 999, ..windows }, Resource::Bytes),
            (Windows { descriptors: 0, ..windows }, Resource::Descriptors),
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
        (0..400_usize, 0..4_usize).prop_map(|(bytes, descriptors)| size(bytes, descriptors))
    }

    fn any_windows() -> impl Strategy<Value = Windows> {
        (0..6_u32, 0..2_000_u32, 0..12_u32).prop_map(|(calls, bytes, descriptors)| Windows {
            calls,
            bytes,
            descriptors,
        })
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
                        let cost = Cost::of_call(message, answer);
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
        fn windows_of_any_size_never_overflow(windows in any::<[u32; 3]>()) {
            let [calls, bytes, descriptors] = windows;
            let mut account = Account::new(Windows { calls, bytes, descriptors });
            let largest = Cost::of_call(Size::LARGEST, Size::LARGEST);
            for _ in 0..100 {
                if account.try_reserve(largest).is_err() {
                    break;
                }
            }
            prop_assert!(account.taken().calls() <= calls);
        }
    }
}
