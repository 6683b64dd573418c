//! What a report says and what it is answered, as `lease.lua` takes and gives it.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, Script, ScriptInvocation};

use super::share::Grant;

/// How long a lease is good for after the report that brought it.
pub const LEASE: Duration = Duration::from_secs(1);

/// The script itself; Redis keeps it by its hash.
pub fn script() -> Script {
    Script::new(include_str!("lease.lua"))
}

/// What a pod says of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Key of the limit, with the window and the names that are counted apart.
    pub id: Arc<str>,
    /// The window, in milliseconds.
    pub window: u64,
    /// What all leases may cost together.
    pub budget: u64,
    /// What the pod would like.
    pub want: Grant,
    /// What it would like while nobody may grow: not more than it obeys, and not more than its local share.
    pub young: Grant,
    /// The refill that it obeys at this moment.
    pub obeys: u64,
    /// The burst that it still counts for.
    pub held: u32,
    /// What it wants in all, for the shares of others.
    pub wants: u64,
    /// It hands everything back and will not report this limit again until it wants something.
    pub back: bool,
}

/// What is answered of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    /// What may be spent.
    pub grant: Grant,
    /// What the other pods want, in the order of their ids.
    pub others: Vec<u64>,
    /// How many of them stand before this pod in that order.
    pub place: usize,
}

/// Whether more of this report follows, or the pod goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// More limits follow in another call.
    More,
    /// All was told: the pod counts as present.
    Last,
    /// The pod goes.
    Leave,
}

/// What stands above the limits of a report.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    /// What all keys begin with.
    pub prefix: &'a str,
    /// The pod.
    pub pod: &'a str,
    /// Grows with each call of this pod.
    pub number: u64,
    /// Pods that this one last knew of.
    pub knew: u32,
    /// Whether more follows.
    pub part: Part,
    /// Redis' time up to which pauses were heard; 0 = there never was an answer.
    pub heard: u64,
    /// Names and milliseconds of pauses to tell.
    pub pauses: &'a [(Arc<str>, u64)],
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Redis' time, in milliseconds.
    pub now: u64,
    /// Pods that are there.
    pub pods: u32,
    /// Whether leases may grow.
    pub settled: bool,
    /// Pauses that other pods told, with what is left of them in milliseconds.
    pub pauses: Vec<(String, u64)>,
    /// One for each limit of the report, in its order.
    pub leases: Vec<Leased>,
}

/// As the script gives it: time, pods, settled, names of pauses, their rests, leases.
pub type RawAnswer = (u64, u32, u8, Vec<String>, Vec<u64>, Vec<Vec<u64>>);

/// A call of the script. All keys have the prefix as hash tag, so they are in one slot.
pub fn invocation<'a>(script: &'a Script, head: &Head<'_>, reports: &[Report]) -> ScriptInvocation<'a> {
    let mut call = script.prepare_invoke();
    let prefix = head.prefix;
    for name in ["meta", "pods", "pauses", "told"] {
        call.key(format!("{{{prefix}}}:{name}"));
    }
    for report in reports {
        call.key(format!("{{{prefix}}}:limit:{}", report.id));
    }
    let part = match head.part {
        Part::More => "more",
        Part::Last => "last",
        Part::Leave => "leave",
    };
    call.arg(head.pod).arg(head.number).arg(LEASE.as_millis() as u64).arg(head.knew).arg(part);
    call.arg(head.heard).arg(head.pauses.len());
    for (name, rest) in head.pauses {
        call.arg(&**name).arg(*rest);
    }
    for report in reports {
        call.arg(report.window).arg(report.budget).arg(report.want.refill).arg(report.want.burst);
        call.arg(report.young.refill).arg(report.young.burst).arg(report.obeys).arg(report.held);
        call.arg(report.wants).arg(u8::from(report.back));
    }
    call
}

/// Reads the answer; an answer that is not for these `limits` is a mistake of the other side.
pub fn answer(raw: RawAnswer, limits: usize) -> RedisResult<Answer> {
    let (now, pods, settled, names, rests, leases) = raw;
    let leases: Option<Vec<Leased>> = leases.into_iter().map(leased).collect();
    let leases = leases
        .filter(|leases| leases.len() == limits)
        .ok_or((redis::ErrorKind::UnexpectedReturnType, "an answer that is not for this report"))?;
    Ok(Answer { now, pods, settled: settled == 1, pauses: names.into_iter().zip(rests).collect(), leases })
}

fn leased(numbers: Vec<u64>) -> Option<Leased> {
    let &[refill, burst, place, ref others @ ..] = numbers.as_slice() else { return None };
    let grant = Grant { refill, burst: u32::try_from(burst).ok()? };
    let place = usize::try_from(place).ok().filter(|place| *place <= others.len())?;
    Some(Leased { grant, others: others.to_vec(), place })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_shape_is_refused() {
        let raw = |leases| (1, 2, 1, vec!["k".to_owned()], vec![5], leases);
        let good = answer(raw(vec![vec![10, 2, 1, 7, 8]]), 1).unwrap();
        assert_eq!(good.leases[0].others, [7, 8]);
        assert_eq!((good.leases[0].grant, good.leases[0].place), (Grant { refill: 10, burst: 2 }, 1));
        assert_eq!(good.pauses, [("k".to_owned(), 5)]);
        for leases in [vec![], vec![vec![10, 2]], vec![vec![10, 2, 3, 7]], vec![vec![10, u64::MAX, 0]]] {
            assert!(answer(raw(leases.clone()), 1).is_err(), "{leases:?}");
        }
    }
}
