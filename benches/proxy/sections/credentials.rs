//! What credentials cost: a token that outgate got itself against a static one, and the whole rewrite of a request for AWS.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use outgate::credential::CredentialConfig;
use outgate::credential::kinds::PerRequest;
use outgate::credential::rewrite::Secrets;
use outgate::message::body::Body;
use outgate::message::request::{EgressParts, EgressRequest, Exchange};
use outgate::message::target::{Host, Scheme, Target};
use outgate::secret::{SecretValue, SecretVersion};
use rustix::time::{ClockId, clock_gettime};

use super::{Pair, cpu, order};
use crate::client::Door;
use crate::report::{self, Spread};
use crate::{Bench, Outcome};

/// What an injected token may cost, as a multiple of a static one.
const TOKEN_AT_MOST: f64 = 1.03;
/// What the rewrite of a request without body for AWS may cost, in microseconds of CPU.
const SIGNED_AT_MOST: f64 = 40.0;
/// Requests of one round in process.
const REWRITES: u32 = 2000;

/// Interleaved rounds of the providers, which differ in their credential alone.
pub async fn run(bench: &Bench) -> Outcome<()> {
    let (rounds, warm, duration) = if bench.quick { (6, 300, 800) } else { (16, 1000, 2000) };
    let (warm, duration) = (Duration::from_millis(warm), Duration::from_millis(duration));
    let pair = Pair::start(bench)?;
    let mut lanes = Vec::new();
    for door in [Door::Local, Door::LocalToken, Door::LocalFree, Door::LocalSigned] {
        lanes.push(pair.warm(door, warm).await?);
    }
    for round in 0..rounds {
        for index in order(round, lanes.len()) {
            pair.outgate.forget_log()?;
            cpu::measure(&pair, &mut lanes[index], duration).await?;
        }
    }
    report::section(
        "credentials: closed loop at the local endpoint, providers that differ in their credential alone",
    );
    let all: Vec<Vec<f64>> = lanes.iter().map(|lane| lane.all(|round| round.cpu)).collect();
    for (name, cpu) in
        ["a static token", "an OAuth token", "no credential", "signed for AWS"].iter().zip(&all)
    {
        report::figure(&format!("{name}: CPU per 100,000 requests"), "s", Spread::of(cpu.clone()));
    }
    let times = Spread::of_ratios(&all[1], &all[0]);
    report::target("OAuth token / static token, CPU of paired rounds", "x", times, TOKEN_AT_MOST);
    // Seconds for 100,000 requests are tens of microseconds for one.
    let [signed, free] =
        [&all[3], &all[2]].map(|seconds| seconds.iter().map(|one| one * 10.0).collect::<Vec<_>>());
    let cost = Spread::of_differences(&signed, &free);
    report::target("signed for AWS - no credential, CPU of paired rounds", "us", cost, SIGNED_AT_MOST);
    pair.note_company()
}

/// The rewrite alone, in this process: what `valgrind --tool=callgrind` can count where a machine is too busy to measure.
pub async fn rewrite(bench: &Bench) -> Outcome<()> {
    let work = work(bench)?;
    let secrets = secrets();
    let mut rounds = Vec::new();
    for _ in 0..if bench.quick { 5 } else { 15 } {
        let mut spent = Duration::ZERO;
        for _ in 0..REWRITES {
            let asked = asked()?;
            let before = cpu_time();
            let done = work.rewriter().rewrite(asked, &secrets).await;
            spent += cpu_time().saturating_sub(before);
            if done.is_err() {
                return Err("the request was not signed".into());
            }
        }
        rounds.push(spent.as_secs_f64() * 1e6 / f64::from(REWRITES));
    }
    report::section("rewrite: a request without body is signed for AWS, in process");
    report::target("CPU of the whole rewrite", "us", Spread::of(rounds), SIGNED_AT_MOST);
    Ok(())
}

fn work(bench: &Bench) -> Outcome<PerRequest> {
    let text = "{ aws_sigv4: { access_key_id: env:ID, secret_access_key: env:SECRET } }";
    let config: CredentialConfig = serde_yaml::from_str(text)?;
    let member = config.members(bench.directory.path())?.pop().ok_or("no member")?;
    Ok(member.per_request.ok_or("nothing to do for a request")?)
}

/// The secret, and the id behind it.
fn secrets() -> Secrets {
    let version = |text: &str| {
        Arc::new(SecretVersion {
            value: SecretValue::new(text.as_bytes().to_vec()),
            number: 1,
            read_at: tokio::time::Instant::now(),
            read_at_wall: SystemTime::now(),
            expires: None,
        })
    };
    Secrets::new(vec![version("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"), version("AKIAIOSFODNN7EXAMPLE")])
}

/// What an SDK asks.
fn asked() -> Outcome<EgressRequest> {
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("content-type", "application/json"), ("user-agent", "Boto3/1.40"), ("x-amz-meta-a", "b")]
    {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let host = Host::parse("bucket.s3.eu-west-1.amazonaws.com").map_err(|_| "no host")?;
    Ok(EgressRequest::from(EgressParts {
        method: Method::GET,
        target: Target { scheme: Scheme::Https, host, port: 443 },
        path_and_query: "/some/key?list-type=2&prefix=a%2Fb".parse()?,
        headers,
        body: Body::empty(),
        upgrade: false,
        credential_choice: 0,
        tenant: None,
        leave: None,
        exchange: Arc::new(Exchange::new(None)),
    }))
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
