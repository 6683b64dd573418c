//! Every case of these groups is either a test, named by its id, or stands in a list with the reason why it is not one yet.

/// Cases, or runs of cases, that are not tested, and why. (TG-20 (e), off loopback, wants a machine of its own:
/// `tests/packaging/test_off_loopback.py`.)
const NOT_YET: &[(&str, &str)] = &[];

const GROUPS: [(&str, usize, &str); 3] = [
    ("fr", 27, include_str!("framing.rs")),
    ("tg", 21, include_str!("targets.rs")),
    ("cn", 12, include_str!("connect.rs")),
];

#[test]
fn every_case_is_tested_or_listed() {
    for (case, reason) in NOT_YET {
        println!("not yet: {case}: {reason}");
    }
    let mut missing = Vec::new();
    for (group, count, source) in GROUPS {
        for number in 1..=count {
            let tested = source.contains(&format!("async fn {group}_{number:02}_"));
            let id = format!("{}-{number:02}", group.to_ascii_uppercase());
            if !tested && !NOT_YET.iter().any(|(case, _)| *case == id) {
                missing.push(id);
            }
        }
    }
    assert!(missing.is_empty(), "neither tested nor listed: {missing:?}");
    assert_eq!(NOT_YET.len(), 0, "a case that is tested by now leaves the list");
}
