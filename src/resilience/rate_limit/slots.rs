//! The debts of many keys, bounded: 24 bytes a key.
//!
//! A key whose debt is over is the same as one that never came, so it goes when a table has doubled. Where a table is full of
//! keys that still owe, new keys count together as one (see `store`).

use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;

use super::lease::Taken;
use super::pace::Pace;
use crate::resilience::key::{ByHash, Key};

/// A key, as tables hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(u64, u64);

impl Id {
    /// What all keys count as that find no room.
    pub const OVERFLOW: Self = Self(1, 1);

    /// Which of `tables` (a power of two) holds it.
    pub fn table(self, tables: usize) -> usize {
        self.1 as usize & (tables - 1)
    }
}

impl From<Key> for Id {
    fn from(key: Key) -> Self {
        let (high, low) = key.halves();
        Self(high, low)
    }
}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// A table by key.
pub(super) type ById<V> = ByHash<Id, V>;

/// How many keys one table holds.
pub(super) const MOST_KEYS: usize = 100_000;
/// Below this a table is not swept.
const FEW_KEYS: usize = 1_024;
/// At most one sweep in this time (nanoseconds), so that a table full of debtors does not sweep for each newcomer.
const SWEEP_EVERY: u64 = 1_000_000_000;

/// Why no token was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoToken {
    /// There is one in so many nanoseconds; `None`: not before the lease changes.
    Until(Option<u64>),
    /// The key is new, and there is no room for it.
    NoRoom,
}

/// The keys of one table, all with the same pace.
pub(super) struct Slots {
    pub pace: Pace,
    pub edition: u64,
    /// When this pace came into force, where there was another one before.
    paced_at: Option<u64>,
    /// Sum of what was given back, in time, over all keys: an upper bound for each.
    given: u64,
    /// When each key owes nothing any more.
    clear_at: ById<u64>,
    /// The same of a key that is not here. It owes nothing, but for what a new pace has all begin with; those that are here
    /// owe no less.
    others_clear_at: u64,
    /// When the last of all owes nothing any more; or later, where something was given back.
    last_clear_at: u64,
    sweep_at: usize,
    swept: u64,
}

impl Slots {
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            edition: 0,
            paced_at: None,
            given: 0,
            clear_at: ById::default(),
            others_clear_at: 0,
            last_clear_at: 0,
            sweep_at: FEW_KEYS,
            swept: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.clear_at.len()
    }

    /// How much a key owes now.
    pub fn debt(&self, id: Id, now: u64) -> u64 {
        self.clear_at.get(&id).unwrap_or(&self.others_clear_at).saturating_sub(now)
    }

    /// How much the key owes that owes the most; at least, for what was given back may still count.
    pub fn most_debt(&self, now: u64) -> u64 {
        self.last_clear_at.saturating_sub(now)
    }

    /// Takes tokens of a key, all or none; `known` ones find room in any case.
    pub fn take(&mut self, id: Id, now: u64, known: bool, tokens: NonZeroU32) -> Result<Taken, NoToken> {
        let refused = |wait| NoToken::Until(Some(wait));
        let after = match self.clear_at.get_mut(&id) {
            Some(clear_at) => {
                *clear_at =
                    now + self.pace.take_many(clear_at.saturating_sub(now), tokens).map_err(refused)?;
                *clear_at
            }
            None => {
                self.make_room(now, known || id == Id::OVERFLOW)?;
                let debt = self.others_clear_at.saturating_sub(now);
                let after = now + self.pace.take_many(debt, tokens).map_err(refused)?;
                self.clear_at.insert(id, after);
                after
            }
        };
        self.last_clear_at = self.last_clear_at.max(after);
        Ok(Taken { after, given: self.given, edition: self.edition, tokens })
    }

    /// Gives back what of a token has not come back by itself.
    ///
    /// Safe: after it the debt is at least what it would be had the token never been taken. Let `m` be the tokens taken
    /// since. Then the debt was counted on from `after`, so it clears no sooner than `after - given since + m` intervals; and
    /// those `m` alone, the last at the latest now, clear no later than `now + m` intervals. The difference of the two is
    /// what can be given, and never more than the one interval that the token had cost.
    pub fn give_back(&mut self, id: Id, taken: Taken, now: u64) {
        if taken.edition != self.edition {
            return;
        }
        let Some(clear_at) = self.clear_at.get_mut(&id) else { return };
        let since = self.given - taken.given;
        let cost = self.pace.interval().saturating_mul(u64::from(taken.tokens.get()));
        let rest = taken.after.saturating_sub(since).saturating_sub(now).min(cost);
        *clear_at = clear_at.saturating_sub(rest);
        self.given += rest;
    }

    /// Another pace from now on; see [`Pace::taken_over`].
    pub fn repace(&mut self, pace: Pace, edition: u64, now: u64) {
        let old = self.pace;
        (self.pace, self.edition) = (pace, edition);
        if pace == old {
            return;
        }
        let rested = self.paced_at.is_none_or(|at| now - at >= old.window());
        for clear_at in self.clear_at.values_mut().chain([&mut self.others_clear_at, &mut self.last_clear_at])
        {
            *clear_at = now + pace.taken_over(old, clear_at.saturating_sub(now), rested);
        }
        self.paced_at = Some(now);
    }

    /// Drops keys that owe nothing, and memory that is not needed any more.
    pub fn sweep(&mut self, now: u64) {
        self.clear_at.retain(|_, clear_at| *clear_at > now);
        let keys = self.clear_at.len();
        if self.clear_at.capacity() > 4 * keys.max(FEW_KEYS) {
            self.clear_at.shrink_to(2 * keys);
        }
        self.sweep_at = (2 * keys).clamp(FEW_KEYS, MOST_KEYS);
        self.swept = now;
    }

    fn make_room(&mut self, now: u64, known: bool) -> Result<(), NoToken> {
        if self.len() >= self.sweep_at && now >= self.swept.saturating_add(SWEEP_EVERY) {
            self.sweep(now);
        }
        if self.len() < MOST_KEYS || known { Ok(()) } else { Err(NoToken::NoRoom) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const ONE: NonZeroU32 = NonZeroU32::MIN;

    fn slots(rate: u32, burst: u32) -> Slots {
        Slots::new(Pace::new(Duration::from_secs(1), u64::from(rate - burst + 1) * 1_000, burst).unwrap())
    }

    fn id(number: u64) -> Id {
        Id::from(Key::of(&[&number.to_string()]))
    }

    proptest! {
        /// Tokens that were used never exceed the rate in any window, whatever was given back in between.
        #[test]
        fn what_is_given_back_is_never_too_much(rate in 1u32..12, burst in 1u32..12, seed: u64) {
            let burst = burst.min(rate);
            let mut slots = slots(rate, burst);
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut now, mut held, mut used) = (0, Vec::new(), Vec::new());
            for _ in 0..400 {
                now += if random.bool() { random.u64(..slots.pace.interval() / 2) } else { 0 };
                match random.u8(..10) {
                    0..=5 => {
                        // At most what may be taken at once.
                        let tokens = NonZeroU32::new(random.u32(1..=burst.min(3))).unwrap();
                        if let Ok(taken) = slots.take(id(1), now, false, tokens) {
                            match random.bool() {
                                true => held.push(taken),
                                false => used.extend(std::iter::repeat_n(now, tokens.get() as usize)),
                            }
                        }
                    }
                    _ if !held.is_empty() => {
                        let taken = held.swap_remove(random.usize(..held.len()));
                        slots.give_back(id(1), taken, now);
                    }
                    _ => {}
                }
            }
            for start in &used {
                let in_window = used.iter().filter(|at| (*start..start + SECOND).contains(at)).count();
                prop_assert!(in_window <= rate as usize);
            }
        }
    }

    proptest! {
        /// Whatever a reload makes of rate and burst, however often: no window holds more than the largest rate. Some keys are
        /// asked all the time, one only after the last change.
        #[test]
        fn no_window_across_other_paces_holds_more_than_the_rate(most in 1u32..40, one_rate: bool, seed: u64) {
            let mut random = fastrand::Rng::with_seed(seed);
            let numbers = |random: &mut fastrand::Rng| {
                let rate = if one_rate { most } else { random.u32(1..=most) };
                let burst = [1, random.u32(1..=rate), rate][random.usize(..3)];
                Pace::new(Duration::from_secs(1), u64::from(rate - burst + 1) * 1_000, burst).unwrap()
            };
            let mut slots = Slots::new(numbers(&mut random));
            let mut used = [const { Vec::new() }; 3];
            let mut now = 0;
            for step in 0..2_000 {
                // Mostly at full use, which is when it matters; and now and then a rest, to have the burst again.
                now += [SECOND / 400, SECOND / 90, SECOND / 90, random.u64(..=SECOND / 2)][random.usize(..4)];
                if random.u8(..40) == 0 {
                    slots.repace(numbers(&mut random), step + 1, now);
                }
                for (key, used) in (0..).zip(&mut used) {
                    if key == 2 && step < 1_500 {
                        continue;
                    }
                    let asks = key == 0 || random.bool();
                    used.extend(std::iter::from_fn(|| slots.take(id(key), now, false, ONE).ok().filter(|_| asks)).map(|_| now));
                }
                if random.u8(..20) == 0 {
                    slots.sweep(now);
                }
            }
            for used in used {
                let fullest = used.iter().enumerate().map(|(first, start)| {
                    used[first..].iter().take_while(|at| **at < start + SECOND).count()
                });
                prop_assert!(fullest.max() <= Some(most as usize));
            }
        }
    }

    #[test]
    fn another_burst_gives_nothing_that_a_window_does_not_hold() {
        // 20 a second one by one, and at once a burst of 10: none is there.
        let mut slots = slots(20, 1);
        for number in 0..20 {
            slots.take(id(1), number * SECOND / 20 + 20_000_000, false, ONE).unwrap();
        }
        slots.repace(Pace::new(Duration::from_secs(1), 11_000, 10).unwrap(), 1, SECOND);
        let at = |slots: &mut Slots, key, now| {
            std::iter::from_fn(|| slots.take(id(key), now, false, ONE).ok()).count()
        };
        assert_eq!(at(&mut slots, 1, SECOND), 0);
        // Nor for a key that is not known: it may have been swept.
        assert_eq!(at(&mut slots, 2, SECOND), 1);
        // It comes as the new pace brings it.
        assert_eq!(at(&mut slots, 3, 3 * SECOND), 10);
        // The same numbers change nothing.
        let (owed, same) = (slots.debt(id(1), 2 * SECOND), slots.pace);
        slots.repace(same, 2, 2 * SECOND);
        assert_eq!(slots.debt(id(1), 2 * SECOND), owed);
    }

    #[test]
    fn an_unused_token_is_there_again() {
        let mut slots = slots(10, 2);
        let first = slots.take(id(1), 0, false, ONE).unwrap();
        let second = slots.take(id(1), 0, false, ONE).unwrap();
        assert!(slots.take(id(1), 0, false, ONE).is_err());
        slots.give_back(id(1), first, 0);
        slots.give_back(id(1), second, 0);
        assert_eq!(slots.debt(id(1), 0), 0);
        // What has come back by itself is not given twice.
        let old = slots.take(id(1), 0, false, ONE).unwrap();
        slots.take(id(1), SECOND, false, ONE).unwrap();
        let owed = slots.debt(id(1), SECOND);
        slots.give_back(id(1), old, SECOND);
        assert_eq!(slots.debt(id(1), SECOND), owed);
    }

    #[test]
    fn a_rate_of_another_time_keeps_the_share_that_is_spent() {
        let mut slots = slots(100, 10);
        for _ in 0..5 {
            slots.take(id(1), 0, false, ONE).unwrap();
        }
        let old = slots.take(id(2), 0, false, ONE).unwrap();
        slots.repace(Pace::new(Duration::from_secs(60), 17_000, 4).unwrap(), 1, 0);
        assert_eq!(slots.debt(id(1), 0), slots.pace.full() / 2);
        // A token of the old pace is not given back into the new one.
        let owed = slots.debt(id(2), 0);
        slots.give_back(id(2), old, 0);
        assert_eq!(slots.debt(id(2), 0), owed);
    }

    #[test]
    fn a_full_table_sends_newcomers_elsewhere_until_debts_are_over() {
        let mut slots = slots(10, 10);
        for number in 0..MOST_KEYS as u64 {
            slots.take(Id(number, 7), 0, false, ONE).unwrap();
        }
        let now = 1_000;
        assert_eq!(slots.take(Id(u64::MAX, 7), now, false, ONE).err(), Some(NoToken::NoRoom));
        assert!(slots.take(Id(3, 7), now, false, ONE).is_ok());
        assert!(slots.take(Id::OVERFLOW, now, false, ONE).is_ok());
        assert!(slots.take(Id(u64::MAX, 7), 30 * SECOND, false, ONE).is_ok());
        assert_eq!(slots.len(), 1);
        assert!(slots.clear_at.capacity() < 10_000);
    }

    #[test]
    fn a_million_keys_take_less_than_64_mib() {
        const TABLES: usize = 16;
        let mut tables: Vec<_> = (0..TABLES).map(|_| slots(1_000, 100)).collect();
        for number in 0..1_000_000 {
            let id = id(number);
            tables[id.table(TABLES)].take(id, 0, false, ONE).unwrap();
        }
        assert_eq!(tables.iter().map(Slots::len).sum::<usize>(), 1_000_000);
        // A hash table has a power of two of buckets, at most 7 of 8 used, and a byte of its own for each.
        let buckets = |slots: &Slots| (slots.clear_at.capacity() * 8 / 7).next_power_of_two();
        let bucket = size_of::<(Id, u64)>() + 1;
        let bytes: usize = tables.iter().map(|slots| buckets(slots) * bucket).sum();
        assert_eq!(bucket, 25);
        assert!(bytes < 64 << 20, "{bytes} bytes");
        for slots in &mut tables {
            slots.sweep(u64::MAX);
        }
        assert_eq!(tables.iter().map(Slots::len).sum::<usize>(), 0);
        assert!(tables.iter().map(|slots| slots.clear_at.capacity()).sum::<usize>() < 10_000);
    }
}
