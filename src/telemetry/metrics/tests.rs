use std::time::Duration;

use insta::assert_snapshot;

use super::*;
use crate::telemetry::{Door, Timings, new_request_id};

fn event(metrics: Option<Arc<RouteMetrics>>) -> RequestEvent {
    let time = SystemTime::UNIX_EPOCH;
    let mut event = RequestEvent::new(new_request_id(), Door::Local, "l".into(), time);
    event.metrics = metrics;
    event.status = Some(200);
    event
}

/// The samples whose line begins with `start`.
fn samples(metrics: &Metrics, start: &str) -> String {
    let text = metrics.encode();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(start)).collect();
    lines.join("\n")
}

/// What dashboards are built on.
#[test]
fn names_help_and_types_are_stable() {
    let text = Metrics::new().encode();
    let described: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
    assert_snapshot!(described.join("\n"), @"
    # HELP process_cpu_seconds User and system CPU time in seconds.
    # TYPE process_cpu_seconds counter
    # HELP process_threads Threads of the process.
    # TYPE process_threads gauge
    # HELP process_start_time_seconds Unix time when the process began.
    # TYPE process_start_time_seconds gauge
    # HELP process_resident_memory_bytes Resident memory in bytes.
    # TYPE process_resident_memory_bytes gauge
    # HELP process_open_fds Open file descriptors.
    # TYPE process_open_fds gauge
    # HELP process_max_fds File descriptors that may be open.
    # TYPE process_max_fds gauge
    # HELP outgate_build The version that runs.
    # TYPE outgate_build info
    # HELP outgate_leaf_cache_entries Leaf certificates kept for interception.
    # TYPE outgate_leaf_cache_entries gauge
    # HELP outgate_policy_generation Generation of the policy in force.
    # TYPE outgate_policy_generation gauge
    # HELP outgate_leaf_minted Leaf certificates made for interception.
    # TYPE outgate_leaf_minted counter
    # HELP outgate_access_log_dropped Access-log lines lost: queue full or output broken.
    # TYPE outgate_access_log_dropped counter
    # HELP outgate_internal_errors Mistakes of outgate itself; any is worth a report.
    # TYPE outgate_internal_errors counter
    # HELP outgate_policy_last_reload_timestamp_seconds Unix time when the policy in force was put in place.
    # TYPE outgate_policy_last_reload_timestamp_seconds gauge
    # HELP outgate_ca_not_after_timestamp_seconds Unix time when the CA of interception in use ends.
    # TYPE outgate_ca_not_after_timestamp_seconds gauge
    # HELP outgate_requests Finished requests, by class of the status and by flag.
    # TYPE outgate_requests counter
    # HELP outgate_requests_in_flight Requests that have begun and not ended.
    # TYPE outgate_requests_in_flight gauge
    # HELP outgate_request_duration_seconds Time of requests in seconds, by phase.
    # TYPE outgate_request_duration_seconds histogram
    # HELP outgate_request_bytes Bytes of request bodies.
    # TYPE outgate_request_bytes counter
    # HELP outgate_response_bytes Bytes of answer bodies.
    # TYPE outgate_response_bytes counter
    # HELP outgate_scrubbed Times an answer repeated the credential, and it was masked.
    # TYPE outgate_scrubbed counter
    # HELP outgate_shadowed Requests that shadow mode let pass, by what would have stopped them.
    # TYPE outgate_shadowed counter
    # HELP outgate_upstream_connections Open connections to upstreams.
    # TYPE outgate_upstream_connections gauge
    # HELP outgate_upstream_dials Attempts to open a connection to an upstream.
    # TYPE outgate_upstream_dials counter
    # HELP outgate_heals Credentials renewed because the provider refused them.
    # TYPE outgate_heals counter
    # HELP outgate_credential_overlap Of lists of credentials, new and old: uses of an old one, and hours in which none was needed.
    # TYPE outgate_credential_overlap counter
    # HELP outgate_downstream_connections Open connections from clients.
    # TYPE outgate_downstream_connections gauge
    # HELP outgate_downstream_connections_resting Open connections from clients on which nothing happens, and which hold no buffers.
    # TYPE outgate_downstream_connections_resting gauge
    # HELP outgate_downstream_connections_accepted Accepted connections from clients.
    # TYPE outgate_downstream_connections_accepted counter
    # HELP outgate_secret_age_seconds Seconds since the secret was last read or found unchanged.
    # TYPE outgate_secret_age_seconds gauge
    # HELP outgate_secret_ends_in_seconds Seconds until the value in use ends, where it has an end: a token, a lease.
    # TYPE outgate_secret_ends_in_seconds gauge
    # HELP outgate_secret_version Grows by one with each change of the secret.
    # TYPE outgate_secret_version gauge
    # HELP outgate_secret_errors Reads of the secret that failed.
    # TYPE outgate_secret_errors counter
    # HELP outgate_policy_reloads Policies that were read again, by what came of it.
    # TYPE outgate_policy_reloads counter
    # EOF
    ");
}

#[test]
fn no_family_stands_there_twice() {
    let text = Metrics::new().encode();
    let mut names: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup_by_key(|line| line.split(' ').nth(2));
    assert_eq!(names.len(), all);
}

#[test]
fn a_request_is_counted_for_its_route_and_provider() {
    let metrics = Metrics::new();
    let route = metrics.route("stripe", "charges");
    let timings = Timings {
        total: Duration::from_millis(20),
        queue: Some(Duration::from_secs(90)),
        ..Timings::default()
    };
    let event =
        RequestEvent { request_bytes: 10, response_bytes: 20, scrubbed: 2, timings, ..event(Some(route)) };
    metrics.record(&event);
    metrics.record(&event);
    metrics.record(&RequestEvent { status: Some(429), flag: Some(Flag::RateLimited), ..event.clone() });
    metrics.record(&RequestEvent { status: None, flag: Some(Flag::DownstreamGone), ..event });
    assert_snapshot!(samples(&metrics, "outgate_requests_total"), @r#"
    outgate_requests_total{provider="stripe",route="charges",code_class="4xx",flag="RL"} 1
    outgate_requests_total{provider="stripe",route="charges",code_class="none",flag="DC"} 1
    outgate_requests_total{provider="stripe",route="charges",code_class="2xx",flag=""} 2
    "#);
    let transfer = ["outgate_request_bytes", "outgate_response_bytes", "outgate_scrubbed"];
    let transfer = transfer.map(|name| samples(&metrics, name)).join("\n");
    assert_snapshot!(transfer, @r#"
    outgate_request_bytes_total{provider="none"} 0
    outgate_request_bytes_total{provider="stripe"} 40
    outgate_response_bytes_total{provider="none"} 0
    outgate_response_bytes_total{provider="stripe"} 80
    outgate_scrubbed_total{provider="none"} 0
    outgate_scrubbed_total{provider="stripe"} 8
    "#);
    let buckets = samples(&metrics, "outgate_request_duration_seconds_bucket");
    let queue: Vec<&str> =
        buckets.lines().filter(|line| line.contains("\"stripe\",phase=\"queue\"")).collect();
    assert_snapshot!(queue.join("\n"), @r#"
    outgate_request_duration_seconds_bucket{le="0.001",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="0.0025",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="0.005",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="0.01",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="0.025",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="0.05",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="0.1",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="0.25",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="0.5",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="1.0",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="2.5",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="10.0",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="30.0",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="60.0",provider="stripe",phase="queue"} 0
    outgate_request_duration_seconds_bucket{le="+Inf",provider="stripe",phase="queue"} 4
    "#);
    assert_snapshot!(samples(&metrics, "outgate_request_duration_seconds_count{provider=\"stripe\""), @r#"
    outgate_request_duration_seconds_count{provider="stripe",phase="total"} 4
    outgate_request_duration_seconds_count{provider="stripe",phase="queue"} 4
    outgate_request_duration_seconds_count{provider="stripe",phase="connect"} 0
    outgate_request_duration_seconds_count{provider="stripe",phase="tls"} 0
    outgate_request_duration_seconds_count{provider="stripe",phase="first_byte"} 0
    outgate_request_duration_seconds_count{provider="stripe",phase="body"} 0
    "#);
}

#[test]
fn a_request_without_provider_is_counted_as_such() {
    let metrics = Metrics::new();
    metrics.record(&RequestEvent { status: Some(403), flag: Some(Flag::Denied), ..event(None) });
    metrics.retain(|_, _| false);
    metrics.record(&RequestEvent { status: Some(500), flag: Some(Flag::Internal), ..event(None) });
    assert_snapshot!(samples(&metrics, "outgate_requests_total"), @r#"
    outgate_requests_total{provider="none",route="none",code_class="4xx",flag="NR"} 1
    outgate_requests_total{provider="none",route="none",code_class="5xx",flag="IE"} 1
    "#);
    assert_eq!(samples(&metrics, "outgate_internal_errors_total"), "outgate_internal_errors_total 1");
}

#[test]
fn what_the_policy_no_longer_names_is_let_go() {
    let metrics = Metrics::new();
    let routes = [("a", "1"), ("a", "2"), ("b", "1")].map(|(provider, route)| metrics.route(provider, route));
    let count = |metrics: &Metrics| samples(metrics, "outgate_requests_total").lines().count();
    let record = || routes.iter().for_each(|route| metrics.record(&event(Some(Arc::clone(route)))));
    record();
    assert_eq!(count(&metrics), 3);
    metrics.retain(|provider, route| provider == "a" && route != Some("2"));
    record();
    assert_snapshot!(samples(&metrics, "outgate_requests_total"), @r#"outgate_requests_total{provider="a",route="1",code_class="2xx",flag=""} 2"#);
    assert!(!metrics.encode().contains("provider=\"b\""));
    // The same name begins at zero again.
    metrics.record(&event(Some(metrics.route("b", "1"))));
    assert!(metrics.encode().contains("provider=\"b\",route=\"1\",code_class=\"2xx\",flag=\"\"} 1\n"));
}

#[test]
fn handles_of_the_same_name_are_the_same() {
    let metrics = Metrics::new();
    assert!(Arc::ptr_eq(&metrics.route("a", "1"), &metrics.route("a", "1")));
    assert!(Arc::ptr_eq(&metrics.provider("a"), metrics.route("a", "1").provider()));
    assert!(!Arc::ptr_eq(&metrics.route("a", "1"), &metrics.route("b", "1")));
}

#[test]
fn what_is_open_counts_while_it_is_held() {
    let metrics = Metrics::new();
    let (request, connection) = (metrics.provider("a").begin(), metrics.listener("l").accept());
    let open =
        ["outgate_requests_in_flight{provider=\"a\"}", "outgate_downstream_connections{listener=\"l\"}"];
    assert_eq!(open.map(|name| samples(&metrics, name)), open.map(|name| format!("{name} 1.0")));
    drop((request, connection));
    assert_eq!(open.map(|name| samples(&metrics, name)), open.map(|name| format!("{name} 0.0")));
    assert_eq!(
        samples(&metrics, "outgate_downstream_connections_accepted_total"),
        "outgate_downstream_connections_accepted_total{listener=\"l\"} 1"
    );
}

#[test]
fn what_lives_elsewhere_is_read_at_the_scrape() {
    let metrics = Arc::new(Metrics::new());
    let weak = Arc::downgrade(&metrics);
    metrics.on_scrape(move || {
        if let Some(metrics) = weak.upgrade() {
            metrics.provider("a").set_connections(3, 4);
            metrics.set_leaf_cache(7, 0);
        }
    });
    assert_snapshot!(samples(&metrics, "outgate_upstream_connections{provider=\"a\""), @r#"
    outgate_upstream_connections{provider="a",state="idle"} 3.0
    outgate_upstream_connections{provider="a",state="active"} 4.0
    "#);
    metrics.set_ca_end(SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000));
    assert_eq!(samples(&metrics, "outgate_ca_not"), "outgate_ca_not_after_timestamp_seconds 2000000000.0");
    assert_eq!(samples(&metrics, "outgate_leaf_cache_entries"), "outgate_leaf_cache_entries 7");
}

#[test]
fn results_are_counted_by_what_came_of_it() {
    let metrics = Metrics::new();
    metrics.policy_applied(4, SystemTime::UNIX_EPOCH + Duration::from_millis(1500));
    metrics.policy_not_applied(ReloadResult::Refused);
    metrics.provider("a").dialed(DialResult::Tls);
    metrics.provider("a").healed(HealResult::Healed);
    metrics.set_leaf_cache(1, 1);
    let names = [
        "outgate_policy",
        "outgate_upstream_dials_total{provider=\"a\"",
        "outgate_heals_total{provider=\"a\"",
        "outgate_leaf_minted_total",
    ];
    assert_snapshot!(names.map(|name| samples(&metrics, name)).join("\n"), @r#"
    outgate_policy_generation 4
    outgate_policy_last_reload_timestamp_seconds 1.5
    outgate_policy_reloads_total{result="applied"} 1
    outgate_policy_reloads_total{result="unchanged"} 0
    outgate_policy_reloads_total{result="refused"} 1
    outgate_upstream_dials_total{provider="a",result="ok"} 0
    outgate_upstream_dials_total{provider="a",result="address_denied"} 0
    outgate_upstream_dials_total{provider="a",result="dns"} 0
    outgate_upstream_dials_total{provider="a",result="connect"} 0
    outgate_upstream_dials_total{provider="a",result="tls"} 1
    outgate_upstream_dials_total{provider="a",result="timeout"} 0
    outgate_heals_total{provider="a",result="healed"} 1
    outgate_heals_total{provider="a",result="failed"} 0
    outgate_leaf_minted_total 1
    "#);
}

#[test]
fn secrets_have_an_age_once_they_were_read() {
    let metrics = Metrics::new();
    let secret = metrics.secret("env:A");
    secret.failed_in_all(1);
    assert_eq!(samples(&metrics, "outgate_secret_age_seconds"), "");
    secret.read(2, SystemTime::now() - Duration::from_secs(60));
    assert_eq!(samples(&metrics, "outgate_secret_ends_in_seconds"), "");
    secret.ends_in(Some(0));
    assert_eq!(
        samples(&metrics, "outgate_secret_ends_in_seconds"),
        "outgate_secret_ends_in_seconds{reference=\"env:A\"} 0.0"
    );
    let age = samples(&metrics, "outgate_secret_age_seconds{reference=\"env:A\"}");
    let seconds: f64 = age.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!((60.0..120.0).contains(&seconds), "{age}");
    assert!(metrics.encode().contains("outgate_secret_version{reference=\"env:A\"} 2.0\n"));
    assert!(metrics.encode().contains("outgate_secret_errors_total{reference=\"env:A\"} 1\n"));
    metrics.retain_secrets(|_| false);
    assert!(!metrics.encode().contains("env:A"));
}

#[test]
fn the_process_figures_are_plausible() {
    let metrics = Metrics::new();
    let value = |name: &str| -> f64 {
        let sample = samples(&metrics, &format!("{name} "));
        sample.rsplit_once(' ').unwrap_or_else(|| panic!("{name}")).1.parse().unwrap()
    };
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_threads") >= 1.0);
    assert!(value("process_open_fds") >= 3.0);
    assert!(value("process_max_fds") >= value("process_open_fds"));
    assert!(value("process_cpu_seconds_total") >= 0.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 86400.0..now + 60.0).contains(&value("process_start_time_seconds")));
    assert!(metrics.encode().ends_with("# EOF\n"));
}
