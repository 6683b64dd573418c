//! Clocks that jump, with the real program: its wall clock is set by a library that the linker's loader puts before the C
//! library's. What is over by one of the clocks is not sent, and nothing else stops.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::program::Program;
use super::support::client::{Got, local_request};
use super::support::origin::{HttpOrigin, Seen, text};

/// What the program's clock is asked through.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long long *ahead;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("TEST_CLOCK"), O_RDONLY);
    void *page = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) ahead = page;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int done = (int)syscall(SYS_clock_gettime, clock, at);
    if (done == 0 && clock == CLOCK_REALTIME && ahead) at->tv_sec += *ahead;
    return done;
}
"#;

/// The wall clock of a program.
struct WallClock {
    library: PathBuf,
    path: PathBuf,
    file: std::fs::File,
    ahead: Arc<AtomicI64>,
}

impl WallClock {
    fn new(directory: &Path) -> Self {
        let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
        std::fs::write(&source, LIBRARY).unwrap();
        // Whoever builds in Rust has it: it links.
        let mut compiler = Command::new("cc");
        let built =
            compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).status().unwrap();
        assert!(built.success());
        let path = directory.join("clock");
        std::fs::write(&path, 0_i64.to_ne_bytes()).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        Self { library, path, file, ahead: Arc::default() }
    }

    fn environment(&self) -> [(&str, &str); 2] {
        [("LD_PRELOAD", self.library.to_str().unwrap()), ("TEST_CLOCK", self.path.to_str().unwrap())]
    }

    /// So many seconds before the machine's.
    fn set(&self, ahead: i64) {
        self.file.write_all_at(&ahead.to_ne_bytes(), 0).unwrap();
        self.ahead.store(ahead, Ordering::SeqCst);
    }
}

/// Where tokens and keys come from, and the API that they go to.
struct World {
    clock: WallClock,
    issued: Arc<AtomicUsize>,
    is_down: Arc<AtomicBool>,
    origin: HttpOrigin,
    program: Program,
    _issuer: HttpOrigin,
    _directory: tempfile::TempDir,
}

impl World {
    /// Tokens and keys live for so many seconds.
    async fn start(life: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = WallClock::new(directory.path());
        let (issued, is_down) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (count, down, ahead) = (issued.clone(), is_down.clone(), clock.ahead.clone());
        let issuer = HttpOrigin::with(None, move |seen: Seen| {
            if down.load(Ordering::SeqCst) {
                return text(500, "{}");
            }
            if seen.uri.path() == "/keys" {
                let ahead = ahead.load(Ordering::SeqCst);
                let by_machine = SystemTime::now() + Duration::from_secs(life);
                let by = Duration::from_secs(ahead.unsigned_abs());
                let ends = if ahead < 0 { by_machine - by } else { by_machine + by };
                let ends = humantime::format_rfc3339_seconds(ends);
                return text(200, &format!(r#"{{"AccessKeyId":"AKID{ahead}","SecretAccessKey":"s","Token":"t","Expiration":"{ends}"}}"#));
            }
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            text(200, &format!(r#"{{"access_token":"token-{number}","expires_in":{life}}}"#))
        })
        .await;
        let origin = HttpOrigin::with(None, |_| text(200, "{}")).await;
        for (name, value) in [("key", "a-static-key"), ("pod", "the-pod")] {
            std::fs::write(directory.path().join(name), value).unwrap();
        }
        let mut policy = "providers:\n".to_owned();
        for (name, credential) in [
            (
                "api",
                format!(
                    "oauth2_client_credentials: {{ token_url: \"http://{}/token\", client_id: \"plain:app\", client_secret: \"file:{{dir}}/key\" }}",
                    issuer.address
                ),
            ),
            (
                "aws",
                format!(
                    "aws_sigv4: {{ credentials: {{ container: {{ endpoint: \"http://{}/keys\", token_file: \"{{dir}}/pod\" }} }}, region: eu-west-1, service: sqs }}",
                    issuer.address
                ),
            ),
            ("other", "bearer: \"file:{dir}/key\"".to_owned()),
        ] {
            policy.push_str(&format!(
                "  {name}:\n    hosts: [{name}.x.test]\n    upstream: {{ scheme: http, connect_to: \"{}\", plaintext_credential: allow }}\n    credential: {{ {credential} }}\n",
                origin.address
            ));
        }
        let program = Program::start(directory.path(), &policy, "info", &clock.environment());
        Self { clock, issued, is_down, origin, program, _issuer: issuer, _directory: directory }
    }

    async fn get(&self, provider: &str) -> Got {
        local_request(self.program.listener, "GET", &format!("/{provider}/x"), "", "").await
    }

    /// The status, and the credential that arrived.
    async fn sent(&self, provider: &str) -> (u16, String) {
        let status = self.get(provider).await.status;
        (status, self.last().header("authorization").unwrap_or_default().to_owned())
    }

    fn last(&self) -> Seen {
        self.origin.requests().pop().unwrap()
    }

    fn issued(&self) -> usize {
        self.issued.load(Ordering::SeqCst)
    }
}

/// The steady clock stands still while a host sleeps or its virtual machine is paused; the wall clock does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ended_while_the_host_slept_is_not_sent() {
    let world = World::start(3600).await;
    let bearer = |number: usize| (200, format!("Bearer token-{number}"));
    assert_eq!((world.sent("api").await, world.issued()), (bearer(1), 1));
    let (status, signed) = world.sent("aws").await;
    assert!(status == 200 && signed.contains("Credential=AKID0/"), "{signed}");

    world.clock.set(7200);
    assert_eq!((world.sent("api").await, world.issued()), (bearer(2), 2));
    let (status, signed) = world.sent("aws").await;
    assert!(status == 200 && signed.contains("Credential=AKID7200/"), "{signed}");
    let now = humantime::format_rfc3339_seconds(SystemTime::now() + Duration::from_secs(7200)).to_string();
    let date = world.last().header("x-amz-date").unwrap().to_owned();
    let hour = |text: &str| text.chars().filter(char::is_ascii_digit).take(9).collect::<String>();
    assert_eq!(hour(&date), hour(&now), "it is signed by the clock as it is now");

    // Set back, nothing is over before its time, and nothing lives longer.
    world.clock.set(-86_400);
    assert_eq!((world.sent("api").await, world.issued()), (bearer(2), 2));
    assert_eq!(world.sent("aws").await.0, 200);
    assert_eq!(world.sent("other").await, (200, "Bearer a-static-key".to_owned()));

    // It slept, and nobody gives another token when it wakes.
    world.is_down.store(true, Ordering::SeqCst);
    world.clock.set(4 * 7200);
    let before = world.origin.requests().len();
    for provider in ["api", "aws"] {
        let got = world.get(provider).await;
        assert_eq!(
            (got.status, got.header("outgate-error")),
            (503, Some("credential_unavailable")),
            "{provider}"
        );
        assert!(got.header("retry-after").is_some());
    }
    assert_eq!(world.origin.requests().len(), before, "nothing was sent");
    assert_eq!(world.sent("other").await, (200, "Bearer a-static-key".to_owned()));
    let status = local_request(world.program.admin, "GET", "/status", "", "").await.text();
    assert!(status.contains("\"token_status\""), "{status}");
}

/// A wall clock that is set back makes no token live longer than its issuer said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_lengthens_no_life() {
    const LIFE: u64 = 4;
    let world = World::start(LIFE).await;
    // When each token was first seen; it cannot have been issued later.
    let first = Mutex::new(std::collections::HashMap::<String, Instant>::new());
    assert_eq!(world.sent("api").await.0, 200);
    world.clock.set(-86_400);
    let began = Instant::now();
    while world.issued() < 3 {
        assert!(began.elapsed() < Duration::from_secs(60), "the token does not end");
        let (status, token) = world.sent("api").await;
        assert_eq!(status, 200);
        let since = *first.lock().unwrap().entry(token.clone()).or_insert_with(Instant::now);
        // A second more than it lives, for a machine that is busy.
        assert!(since.elapsed() < Duration::from_secs(LIFE + 1), "{token} is over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
