//! Those who wait for the same thing, each in a place of their own.
//!
//! A future owns its place and gives it up when it is dropped: otherwise a program that waits with a time
//! limit again and again would leave a waker behind each time. It does not know what is waited for.

use std::task::Waker;

use ring::Queue;

use crate::numbered::Numbered;

#[derive(Default)]
pub(crate) struct Waiting(Option<Box<Kept>>);

/// Made when somebody waits for the first time: an object that nobody calls should cost next to nothing.
#[derive(Default)]
struct Kept {
    /// Of the one who waits alone, as mostly one does: a place among several takes five times as long.
    alone: Option<(u64, Waker)>,
    /// Of several.
    wakers: Numbered<u64, Waker>,
    /// Places given out so far; none is given out twice.
    count: u64,
}

/// Where one future's waker is kept, once it has waited.
#[derive(Default)]
pub(crate) struct Place(Option<u64>);

impl Place {
    /// Whether its owner has ever waited.
    pub(crate) fn was_given(&self) -> bool {
        self.0.is_some()
    }
}

impl Waiting {
    /// Keeps the waker. Gives back the one kept before, to be dropped when nothing is borrowed.
    #[inline]
    pub(crate) fn keep(&mut self, place: &mut Place, waker: &Waker) -> Option<Waker> {
        let kept = &mut **self.0.get_or_insert_default();
        let number = match place.0 {
            Some(number) => number,
            None => {
                kept.count += 1;
                *place.0.insert(kept.count)
            }
        };
        if kept.alone.is_none() && kept.wakers.is_empty() {
            kept.alone = Some((number, waker.clone()));
            return None;
        }
        kept.keep_beside(number, waker)
    }

    /// Gives up a place. Gives back its waker, to be dropped when nothing is borrowed.
    #[inline]
    pub(crate) fn leave(&mut self, place: &Place) -> Option<Waker> {
        let (number, kept) = (place.0?, self.0.as_mut()?);
        match &kept.alone {
            Some((kept_for, _)) if *kept_for == number => kept.alone.take().map(|(_, waker)| waker),
            _ if kept.wakers.is_empty() => None,
            _ => kept.wakers.remove(number),
        }
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|kept| kept.alone.is_none() && kept.wakers.is_empty())
    }

    /// Takes out the waker of whoever has waited longest, to be woken when nothing is borrowed. The place
    /// stays theirs.
    pub(crate) fn take_first(&mut self) -> Option<Waker> {
        let Kept { alone, wakers, .. } = &mut **self.0.as_mut()?;
        alone.take().map(|(_, waker)| waker).or_else(|| wakers.pop_first())
    }

    /// Takes out all wakers, to be woken when nothing is borrowed. The places stay theirs.
    #[inline]
    pub(crate) fn take_all(&mut self) -> Woken {
        match &mut self.0 {
            Some(kept) if kept.wakers.is_empty() => {
                Woken { first: kept.alone.take().map(|(_, waker)| waker), others: Queue::new() }
            }
            Some(kept) => kept.take_all(),
            None => Woken::default(),
        }
    }
}

impl Kept {
    #[inline(never)]
    fn take_all(&mut self) -> Woken {
        let mut woken = Woken::default();
        woken.extend(self.alone.take().map(|(_, waker)| waker));
        woken.extend(std::iter::from_fn(|| self.wakers.pop_first()));
        woken
    }

    /// Where somebody waits already.
    #[inline(never)]
    fn keep_beside(&mut self, number: u64, waker: &Waker) -> Option<Waker> {
        let Kept { alone, wakers, .. } = self;
        if wakers.is_empty()
            && let Some((kept_for, kept)) = alone
            && *kept_for == number
        {
            let known = kept.will_wake(waker);
            return (!known).then(|| std::mem::replace(kept, waker.clone()));
        }
        if let Some((number, waker)) = alone.take() {
            wakers.insert(number, waker);
        }
        match wakers.find(number) {
            Some(kept) if kept.will_wake(waker) => None,
            _ => wakers.insert(number, waker.clone()),
        }
    }
}

/// Wakers taken out under a borrow, to be woken after it. Mostly there is one, which needs no memory of its
/// own.
#[derive(Default)]
pub(crate) struct Woken {
    first: Option<Waker>,
    others: Queue<Waker>,
}

impl Woken {
    /// One more.
    #[inline]
    pub(crate) fn push(&mut self, waker: Waker) {
        match self.first {
            None => self.first = Some(waker),
            Some(_) => self.others.with_memory().push_back(waker),
        }
    }
}

impl Extend<Waker> for Woken {
    #[inline]
    fn extend<T: IntoIterator<Item = Waker>>(&mut self, wakers: T) {
        wakers.into_iter().for_each(|waker| self.push(waker));
    }
}

impl Iterator for Woken {
    type Item = Waker;

    fn next(&mut self) -> Option<Waker> {
        self.first.take().or_else(|| self.others.pop_front())
    }
}

/// Wakes, with nothing borrowed: this may run anybody's code.
pub(crate) fn wake(woken: impl IntoIterator<Item = Waker>) {
    woken.into_iter().for_each(Waker::wake);
}

/// As [`wake`], where mostly there is one or nobody.
#[inline]
pub(crate) fn wake_if_any(woken: Woken) {
    wake_each(woken, Waker::wake);
}

/// Wakes in whatever way, where mostly there is one or nobody.
#[inline]
pub(crate) fn wake_each(woken: Woken, mut wake: impl FnMut(Waker)) {
    let Woken { first, others } = woken;
    if let Some(first) = first {
        wake(first);
    }
    if !others.is_empty() {
        Woken { first: None, others }.for_each(wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_place_keeps_one_waker_and_is_woken_once() {
        let (mut waiting, mut place) = (Waiting::default(), Place::default());
        let count = Arc::new(Count::default());
        assert!(waiting.keep(&mut place, &Waker::from(Arc::clone(&count))).is_none());
        assert!(waiting.keep(&mut place, &Waker::from(Arc::clone(&count))).is_none());
        assert!(waiting.keep(&mut place, Waker::noop()).is_some());
        assert!(waiting.keep(&mut place, &Waker::from(Arc::clone(&count))).is_some());
        wake(waiting.take_all());
        wake(waiting.take_all());
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn who_came_first_is_taken_first() {
        let mut waiting = Waiting::default();
        let counts: [Arc<Count>; 2] = Default::default();
        let mut places: [Place; 2] = Default::default();
        for (place, count) in places.iter_mut().zip(&counts) {
            waiting.keep(place, &Waker::from(Arc::clone(count)));
        }
        wake(waiting.take_first());
        let woken = counts.each_ref().map(|count| count.0.load(Ordering::Relaxed));
        assert_eq!(woken, [1, 0]);
        waiting.keep(&mut places[0], &Waker::from(Arc::clone(&counts[0])));
        assert_eq!(waiting.take_all().count(), 2);
        assert!(waiting.take_first().is_none());
    }

    /// One alone, then two, then one again.
    #[test]
    fn who_joins_one_that_waits_alone_is_woken_behind_it() {
        let mut waiting = Waiting::default();
        let mut places: [Place; 2] = Default::default();
        for _ in 0..3 {
            // The second waits first this time, and is still the younger.
            waiting.keep(&mut places[0], Waker::noop());
            assert_eq!(waiting.take_all().count(), 1);
            waiting.keep(&mut places[1], Waker::noop());
            assert!(waiting.leave(&places[0]).is_none());
            waiting.keep(&mut places[0], &Waker::from(Arc::new(Count::default())));
            assert!(waiting.keep(&mut places[1], Waker::noop()).is_none());
            assert!(!waiting.take_first().is_some_and(|waker| waker.will_wake(Waker::noop())));
            assert!(waiting.leave(&places[1]).is_some_and(|waker| waker.will_wake(Waker::noop())));
            assert!(waiting.is_empty());
        }
    }

    #[test]
    fn who_has_left_is_not_woken() {
        let mut waiting = Waiting::default();
        let (mut first, mut second) = (Place::default(), Place::default());
        waiting.keep(&mut first, Waker::noop());
        waiting.keep(&mut second, Waker::noop());
        assert!(waiting.leave(&first).is_some());
        assert!(waiting.leave(&first).is_none());
        assert!(waiting.leave(&Place::default()).is_none());
        assert_eq!(waiting.take_all().count(), 1);
    }
}
