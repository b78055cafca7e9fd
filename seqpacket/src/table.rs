//! Things by numbers that a peer chooses, mostly small ones that are used again and again.
//!
//! A small number is a place in a row, so that nothing is searched for and nothing moves. Whoever uses large
//! numbers is served too, by searching. A table in which nothing is left is one pointer, and what it had its
//! things in is kept for others. It does not know what has numbers.

use crate::numbered::Numbered;

/// Numbers below this have places of their own: a client that numbers its calls by the places of a table of
/// its own, as ours does, keeps below the number of calls its window has.
const NEAR_MAX: u32 = 256;

/// So many that nothing is in are kept.
const SPARES_MAX: usize = 64;

pub(crate) struct Table<T>(Option<Box<Rows<T>>>);

struct Rows<T> {
    near: Vec<Option<T>>,
    /// How many are in it.
    here: usize,
    far: Numbered<u32, T>,
}

/// What tables keep their things in while there are any.
#[allow(clippy::vec_box, reason = "the boxes go from table to table")]
pub(crate) struct SpareRows<T>(Vec<Box<Rows<T>>>);

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table(None)
    }
}

impl<T> Default for Rows<T> {
    fn default() -> Rows<T> {
        Rows { near: Vec::new(), here: 0, far: Numbered::default() }
    }
}

impl<T> Default for SpareRows<T> {
    fn default() -> SpareRows<T> {
        SpareRows(Vec::new())
    }
}

impl<T> Table<T> {
    #[inline]
    pub(crate) fn find(&self, number: u32) -> Option<&T> {
        let rows = self.0.as_ref()?;
        match number < NEAR_MAX {
            true => rows.near.get(number as usize)?.as_ref(),
            false => rows.far.find(number),
        }
    }

    #[inline]
    pub(crate) fn find_mut(&mut self, number: u32) -> Option<&mut T> {
        let rows = self.0.as_mut()?;
        match number < NEAR_MAX {
            true => rows.near.get_mut(number as usize)?.as_mut(),
            false => rows.far.find_mut(number),
        }
    }

    #[inline]
    pub(crate) fn contains(&self, number: u32) -> bool {
        self.find(number).is_some()
    }

    /// Nothing has the number yet.
    #[inline]
    pub(crate) fn insert(&mut self, spare: &mut SpareRows<T>, number: u32, thing: T) {
        let rows = self.0.get_or_insert_with(|| spare.0.pop().unwrap_or_default());
        if number >= NEAR_MAX {
            rows.far.insert(number, thing);
            return;
        }
        let place = number as usize;
        if rows.near.len() <= place {
            rows.near.resize_with(place + 1, || None);
        }
        rows.near[place] = Some(thing);
        rows.here += 1;
    }

    pub(crate) fn remove(&mut self, spare: &mut SpareRows<T>, number: u32) -> Option<T> {
        let rows = self.0.as_mut()?;
        let removed = match number < NEAR_MAX {
            true => {
                let removed = rows.near.get_mut(number as usize)?.take()?;
                rows.here -= 1;
                removed
            }
            false => rows.far.remove(number)?,
        };
        self.rest(spare);
        Some(removed)
    }

    /// As `insert`, if nothing has the number. Says whether that was so.
    #[inline]
    pub(crate) fn try_insert(&mut self, spare: &mut SpareRows<T>, number: u32, thing: T) -> bool {
        let near = match &mut self.0 {
            Some(rows) => rows,
            none => none.insert(spare.0.pop().unwrap_or_default()),
        };
        let Some(place) = near.near.get_mut(number as usize) else {
            return self.try_insert_further(spare, number, thing);
        };
        if place.is_some() {
            return false;
        }
        // Nothing is dropped with what was there, and to find that out takes as long as the rest.
        std::mem::forget(place.replace(thing));
        near.here += 1;
        true
    }

    /// Beyond the end of the row, or of all rows.
    #[inline(never)]
    fn try_insert_further(&mut self, spare: &mut SpareRows<T>, number: u32, thing: T) -> bool {
        let vacant = !self.contains(number);
        if vacant {
            self.insert(spare, number, thing);
        }
        vacant
    }

    /// As `remove`, and drops it.
    pub(crate) fn forget(&mut self, spare: &mut SpareRows<T>, number: u32) {
        drop(self.remove(spare, number));
    }

    /// As `remove`, where `read` has something to say of it: then nothing is to be dropped with it.
    #[inline]
    pub(crate) fn forget_if<R>(
        &mut self,
        spare: &mut SpareRows<T>,
        number: u32,
        read: impl FnOnce(&T) -> Option<R>,
    ) -> Option<R> {
        let rows = self.0.as_mut()?;
        let Some(place) = rows.near.get_mut(number as usize) else {
            let said = read(rows.far.find(number)?)?;
            self.forget(spare, number);
            return Some(said);
        };
        let said = read(place.as_ref()?)?;
        std::mem::forget(place.take());
        rows.here -= 1;
        self.rest(spare);
        Some(said)
    }

    /// If nothing is left.
    #[inline]
    fn rest(&mut self, spare: &mut SpareRows<T>) {
        if self.0.as_ref().is_some_and(|rows| rows.here == 0 && rows.far.is_empty())
            && let Some(rows) = self.0.take()
            && spare.0.len() < SPARES_MAX
        {
            // Its row stays as long as it is: there is nothing in it.
            spare.0.push(rows);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.0.iter().flat_map(|rows| {
            let near = rows.near.iter().zip(0..);
            near.filter_map(|(place, number)| Some((number, place.as_ref()?))).chain(rows.far.iter())
        })
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flat_map(|rows| rows.near.iter_mut().flatten().chain(rows.far.values_mut()))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |rows| rows.here + rows.far.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_map(
            steps in prop::collection::vec((any::<bool>(), 0..20_u32, any::<bool>()), 0..200)
        ) {
            let mut spare = SpareRows::default();
            let (mut table, mut map) = (Table::default(), BTreeMap::new());
            for (step, (inserts, number, far)) in steps.into_iter().enumerate() {
                let number = if far { number + NEAR_MAX - 10 } else { number };
                if !inserts {
                    prop_assert_eq!(table.remove(&mut spare, number), map.remove(&number));
                } else if !table.contains(number) {
                    table.insert(&mut spare, number, step);
                    map.insert(number, step);
                }
                prop_assert!(table.iter().eq(map.iter().map(|(number, thing)| (*number, thing))));
                prop_assert_eq!(table.find(number).copied(), map.get(&number).copied());
                prop_assert_eq!(table.find_mut(number).copied(), map.get(&number).copied());
                prop_assert_eq!((table.len(), table.values_mut().count()), (map.len(), map.len()));
            }
        }
    }

    #[test]
    fn a_table_with_nothing_in_it_is_one_pointer_and_has_given_the_rest_away() {
        let (mut spare, mut table) = (SpareRows::default(), Table::default());
        for number in [3, 0, NEAR_MAX] {
            table.insert(&mut spare, number, [0_u8; 100]);
        }
        for number in [NEAR_MAX, 0, 3] {
            assert!(table.0.is_some());
            table.forget(&mut spare, number);
        }
        assert!(table.0.is_none());
        assert_eq!((size_of_val(&table), spare.0.len()), (size_of::<usize>(), 1));
    }

    #[test]
    fn so_many_are_kept_and_not_one_more() {
        let mut spare = SpareRows::default();
        let mut tables: Vec<Table<u8>> = (0..=SPARES_MAX).map(|_| Table::default()).collect();
        tables.iter_mut().for_each(|table| table.insert(&mut spare, 0, 1));
        tables.iter_mut().for_each(|table| table.forget(&mut spare, 0));
        assert_eq!(spare.0.len(), SPARES_MAX);
    }
}
