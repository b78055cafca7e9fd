//! Things by their numbers, in the order of these.
//!
//! For a few, or for many whose numbers mostly grow: then the newest is the last, and one that is alone takes
//! no more memory than itself. A map by nodes would take two thousand bytes for the first. It does not know
//! what has numbers.

use ring::Queue;

pub(crate) struct Numbered<N, T>(Queue<(N, T)>);

impl<N, T> Default for Numbered<N, T> {
    fn default() -> Numbered<N, T> {
        Numbered(Queue::new())
    }
}

impl<N: Ord + Copy, T> Numbered<N, T> {
    fn place(&self, number: N) -> Result<usize, usize> {
        let things = self.0.memory().ok_or(0_usize)?;
        // Mostly it is the oldest that is looked for, or one that is newer than all: asked first, because a
        // search for each step of a call takes a seventh of what the whole call does.
        match (things.front(), things.back()) {
            (Some((oldest, _)), _) if *oldest == number => return Ok(0),
            (_, Some((newest, _))) if *newest < number => return Err(things.len()),
            (_, Some((newest, _))) if *newest == number => return Ok(things.len() - 1),
            _ => {}
        }
        things.binary_search_by_key(&number, |(number, _)| *number)
    }

    pub(crate) fn find(&self, number: N) -> Option<&T> {
        let place = self.place(number).ok()?;
        self.0.memory().map(|things| &things[place].1)
    }

    pub(crate) fn find_mut(&mut self, number: N) -> Option<&mut T> {
        let place = self.place(number).ok()?;
        Some(&mut self.0.with_memory()[place].1)
    }

    pub(crate) fn contains(&self, number: N) -> bool {
        self.place(number).is_ok()
    }

    /// Gives back what had the number before.
    pub(crate) fn insert(&mut self, number: N, thing: T) -> Option<T> {
        let place = self.place(number);
        let things = self.0.with_memory();
        match place {
            Ok(place) => Some(std::mem::replace(&mut things[place].1, thing)),
            Err(place) => {
                if things.capacity() == 0 {
                    things.reserve_exact(1);
                }
                things.insert(place, (number, thing));
                None
            }
        }
    }

    pub(crate) fn remove(&mut self, number: N) -> Option<T> {
        let place = self.place(number).ok()?;
        self.0.with_memory().remove(place).map(|(_, thing)| thing)
    }

    pub(crate) fn pop_first(&mut self) -> Option<T> {
        self.0.pop_front().map(|(_, thing)| thing)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (N, &T)> {
        self.0.iter().map(|(number, thing)| (*number, thing))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|(_, thing)| thing)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_alone_takes_one_place() {
        let mut numbered = Numbered::default();
        numbered.insert(7_u32, [0_u8; 100]);
        assert_eq!(numbered.0.memory().map(VecDeque::capacity), Some(1));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map(steps in prop::collection::vec((any::<bool>(), 0..20_u32), 0..200)) {
            let (mut numbered, mut map) = (Numbered::default(), BTreeMap::new());
            for (step, (inserts, number)) in steps.into_iter().enumerate() {
                if inserts {
                    prop_assert_eq!(numbered.insert(number, step), map.insert(number, step));
                } else {
                    prop_assert_eq!(numbered.remove(number), map.remove(&number));
                }
                prop_assert!(numbered.iter().eq(map.iter().map(|(number, thing)| (*number, thing))));
                prop_assert_eq!(numbered.contains(number), map.contains_key(&number));
                prop_assert_eq!(numbered.find(number).copied(), map.get(&number).copied());
                prop_assert_eq!((numbered.len(), numbered.is_empty()), (map.len(), map.is_empty()));
            }
        }
    }
}
