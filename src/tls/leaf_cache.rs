//! One TLS server configuration per intercepted host, made when first asked for and kept for hours.
//!
//! Only hosts that the policy intercepts may be asked for: the caller has been admitted before it comes here.
//! The cache is bounded, and callers that want the same host at once wait for one minting. Under a flood of
//! names the hosts that are really used stay, because the cache weighs how often an entry was asked for.
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use moka::future::Cache;
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::authority::{Authority, Leaf};
use super::error::TlsError;
use super::provider::downstream_provider;

/// How many hosts are kept when nothing else is said.
pub const DEFAULT_MAX_ENTRIES: u64 = 1024;

/// A leaf is valid for 23 hours after it was made, so one that is served has 12 hours left.
const KEPT: Duration = Duration::from_secs(11 * 3600);

/// So long before its end a CA signs no more where another one waits: whoever trusts it alone is lost then anyway.
const LAST: Duration = Duration::from_secs(3600);

/// ALPN names of what outgate speaks with the app, the better first (RFC 7301).
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The in-memory handshake of [`LeafCache::warm_up`] needs four turns; a bound, should it not converge.
const WARM_UP_TURNS: usize = 16;

/// The certificates of interception, by host. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct LeafCache {
    shared: Arc<Shared>,
    entries: Cache<String, Entry>,
}

struct Shared {
    authority: ArcSwap<Authority>,
    next: ArcSwapOption<Authority>,
    ticketer: Arc<dyn ProducesTickets>,
    minted: AtomicU64,
}

#[derive(Clone)]
struct Entry {
    config: Arc<ServerConfig>,
    not_before: SystemTime,
    renew_at: SystemTime,
}

/// What becomes of a CA that was found in the place of the one that signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// It is known.
    Unchanged,
    /// It is the one that signs again, and what waited goes.
    Withdrawn,
    /// It waits for the end of the one that signs.
    Waits,
    /// It signs from now on.
    Signs,
}

/// Numbers for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafStats {
    /// Hosts in the cache now; may lag by a few entries.
    pub entries: u64,
    /// Certificates made since the start.
    pub minted: u64,
}

impl LeafCache {
    /// A cache for `max_entries` hosts ([`DEFAULT_MAX_ENTRIES`] is a good number; one takes a few KiB).
    ///
    /// # Errors
    /// [`TlsError::Config`] when the session ticket keys cannot be made.
    pub fn new(authority: Arc<Authority>, max_entries: u64) -> Result<Self, TlsError> {
        let ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        let entries = Cache::builder().max_capacity(max_entries).time_to_live(KEPT).build();
        let (authority, next) = (ArcSwap::new(authority), ArcSwapOption::empty());
        Ok(Self {
            shared: Arc::new(Shared { authority, next, ticketer, minted: AtomicU64::new(0) }),
            entries,
        })
    }

    /// The server configuration for a host: a normalised name, or an IP address as text.
    ///
    /// # Errors
    /// [`TlsError::InvalidHost`], [`TlsError::AuthorityExpired`], [`TlsError::Mint`]; callers that waited for
    /// the same minting get them inside [`TlsError::Shared`]. Errors are not kept.
    pub async fn server_config(&self, host: &str) -> Result<Arc<ServerConfig>, TlsError> {
        let now = SystemTime::now();
        if let Some(entry) = self.entries.get(host).await {
            if entry.is_fresh(now) {
                return Ok(entry.config);
            }
            // The cache counts on a clock that stands still while a laptop sleeps, certificates do not.
            self.entries.invalidate(host).await;
        }
        // Minting is 0.1 ms of computing: less than the way to a thread for blocking work and back.
        let entry = self.entries.try_get_with_by_ref(host, async { self.shared.entry(host) }).await?;
        Ok(entry.config)
    }

    /// The CA that signs.
    pub fn authority(&self) -> Arc<Authority> {
        self.shared.authority.load_full()
    }

    /// The CA that will sign when that one ends, where one has come.
    pub fn next_authority(&self) -> Option<Arc<Authority>> {
        self.shared.next.load_full()
    }

    /// What is to become of a CA that has come in the place of the one that signs. Apps were given the old one to trust, and read
    /// that once: so a new key waits for the old one's end, and the same key in a new certificate does not.
    pub fn succession(&self, found: &Authority, now: SystemTime) -> Succession {
        let signing = self.authority();
        if found.certificate_der() == signing.certificate_der() {
            return if self.next_authority().is_some() {
                Succession::Withdrawn
            } else {
                Succession::Unchanged
            };
        }
        if found.continues(&signing) || signing.not_after() <= now + LAST {
            return Succession::Signs;
        }
        match self.next_authority() {
            Some(next) if next.certificate_der() == found.certificate_der() => Succession::Unchanged,
            Some(_) | None => Succession::Waits,
        }
    }

    /// Does what [`LeafCache::succession`] has found. Connections that are open stay; new ones get new leaves.
    pub fn succeed(&self, found: Arc<Authority>, succession: Succession) {
        match succession {
            Succession::Unchanged => {}
            Succession::Withdrawn => self.shared.next.store(None),
            Succession::Waits => self.shared.next.store(Some(found)),
            Succession::Signs => {
                self.shared.authority.store(found);
                self.shared.next.store(None);
                self.entries.invalidate_all();
            }
        }
    }

    /// Numbers for the metrics.
    pub fn stats(&self) -> LeafStats {
        LeafStats { entries: self.entries.entry_count(), minted: self.shared.minted.load(Ordering::Relaxed) }
    }

    /// Mints a leaf and makes one handshake in memory, so that the first client does not pay for what the
    /// libraries set up at first use. Some milliseconds of computing; leaves no trace in the cache or its
    /// numbers.
    ///
    /// # Errors
    /// Those of minting, and [`TlsError::Config`]: then no client could have connected either.
    pub fn warm_up(&self) -> Result<(), TlsError> {
        const HOST: &str = "warm-up.invalid";
        let authority = self.authority();
        let server = self.shared.build(authority.mint(HOST)?)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate_der().clone())?;
        let client = ClientConfig::builder_with_provider(downstream_provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(HOST).map_err(|_| TlsError::InvalidHost)?;
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        shake_hands(&mut client, &mut server)
    }
}

impl Entry {
    /// False too when the clock went back behind the making: the client would find a leaf that is not valid
    /// yet.
    fn is_fresh(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.renew_at
    }
}

impl Shared {
    fn entry(&self, host: &str) -> Result<Entry, TlsError> {
        let leaf = self.authority.load().mint(host)?;
        let (not_before, not_after) = (leaf.not_before, leaf.not_after);
        let config = Arc::new(self.build(leaf)?);
        self.minted.fetch_add(1, Ordering::Relaxed);
        Ok(Entry { config, not_before, renew_at: renew_at(SystemTime::now(), not_after) })
    }

    fn build(&self, leaf: Leaf) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(downstream_provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.certified)));
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        // One set of ticket keys for all hosts; a ticket is bound to the server name it was made for.
        config.ticketer = self.ticketer.clone();
        // Without this each host would get a session store of its own beside the tickets.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // Early data can be replayed, and these are requests that spend money.
        config.max_early_data_size = 0;
        Ok(config)
    }
}

/// After [`KEPT`], or half-way to the end of a leaf that a dying CA cut short.
fn renew_at(now: SystemTime, not_after: SystemTime) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + KEPT.min(left / 2)
}

fn shake_hands(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), TlsError> {
    for _ in 0..WARM_UP_TURNS {
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok(());
        }
        let mut flight = Vec::new();
        if client.wants_write() {
            client.write_tls(&mut flight).map_err(TlsError::Io)?;
            feed(&mut flight.as_slice(), |rest| server.read_tls(rest))?;
            server.process_new_packets()?;
        } else {
            server.write_tls(&mut flight).map_err(TlsError::Io)?;
            feed(&mut flight.as_slice(), |rest| client.read_tls(rest))?;
            client.process_new_packets()?;
        }
    }
    Err(TlsError::Config(rustls::Error::HandshakeNotComplete))
}

/// Hands over a flight in the pieces that the receiver takes.
fn feed(flight: &mut &[u8], mut read: impl FnMut(&mut &[u8]) -> io::Result<usize>) -> Result<(), TlsError> {
    while !flight.is_empty() && read(flight).map_err(TlsError::Io)? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::CaSource;

    fn cache(max_entries: u64) -> LeafCache {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(&CaSource::Directory(folder.path().join("ca"))).unwrap();
        LeafCache::new(Arc::new(authority), max_entries).unwrap()
    }

    #[tokio::test]
    async fn one_config_per_host_however_many_ask_at_once() {
        let cache = cache(16);
        let asked = (0..32).map(|i| {
            let cache = cache.clone();
            async move { cache.server_config(["a.example.test", "b.example.test"][i % 2]).await.unwrap() }
        });
        let configs = futures_util::future::join_all(asked).await;
        assert!(Arc::ptr_eq(&configs[0], &configs[2]) && Arc::ptr_eq(&configs[1], &configs[31]));
        assert!(!Arc::ptr_eq(&configs[0], &configs[1]));
        assert_eq!(cache.stats().minted, 2);
    }

    #[tokio::test]
    async fn a_flood_of_names_stays_inside_the_bound() {
        let cache = cache(8);
        for i in 0..100 {
            cache.server_config(&format!("r{i}.wild.example.test")).await.unwrap();
        }
        cache.entries.run_pending_tasks().await;
        let stats = cache.stats();
        assert_eq!(stats.minted, 100);
        assert!((1..=8).contains(&stats.entries), "{stats:?}");
    }

    #[tokio::test]
    async fn a_stale_entry_is_made_anew() {
        let cache = cache(8);
        let old = cache.server_config("a.example.test").await.unwrap();
        let now = SystemTime::now();
        for (not_before, renew_at) in [(now, now), (now + KEPT, now + KEPT * 2)] {
            let entry = Entry { config: old.clone(), not_before, renew_at };
            cache.entries.insert("a.example.test".to_owned(), entry).await;
            let new = cache.server_config("a.example.test").await.unwrap();
            assert!(!Arc::ptr_eq(&old, &new));
        }
        assert_eq!(cache.stats().minted, 3);
    }

    #[tokio::test]
    async fn a_new_ca_waits_for_the_end_of_the_old_one() {
        let cache = cache(8);
        let (first, now) = (cache.authority(), SystemTime::now());
        let old = cache.server_config("a.example.test").await.unwrap();
        assert_eq!(cache.succession(&first, now), Succession::Unchanged);
        let second = self::cache(1).authority();
        assert_eq!(cache.succession(&second, now), Succession::Waits);
        cache.succeed(second.clone(), Succession::Waits);
        assert!(Arc::ptr_eq(&cache.authority(), &first) && cache.next_authority().is_some());
        assert_eq!(cache.succession(&second, now), Succession::Unchanged);
        assert_eq!(cache.succession(&first, now), Succession::Withdrawn);
        assert!(Arc::ptr_eq(&old, &cache.server_config("a.example.test").await.unwrap()));
        // Its time has come.
        let late = first.not_after() - LAST;
        assert_eq!(cache.succession(&second, late - Duration::from_secs(1)), Succession::Unchanged);
        assert_eq!(cache.succession(&second, late), Succession::Signs);
        cache.succeed(second.clone(), Succession::Signs);
        assert!(Arc::ptr_eq(&cache.authority(), &second) && cache.next_authority().is_none());
        assert!(!Arc::ptr_eq(&old, &cache.server_config("a.example.test").await.unwrap()), "a new leaf");
        assert_eq!(cache.succession(&second, now), Succession::Unchanged);
    }

    #[tokio::test]
    async fn what_a_config_offers() {
        let config = cache(1).server_config("a.example.test").await.unwrap();
        assert_eq!(config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert_eq!(config.max_early_data_size, 0);
        assert!(config.ticketer.enabled());
        assert!(!config.session_storage.can_cache());
        assert_eq!(config.crypto_provider().kx_groups[0].name(), rustls::NamedGroup::X25519);
    }

    #[tokio::test]
    async fn hosts_that_no_certificate_can_name() {
        let cache = cache(1);
        for host in ["", "a b", "*.example.test", "a..b", "-", "exa\u{e4}mple.test", "[::1"] {
            let error = cache.server_config(host).await.err().unwrap().to_string();
            assert_eq!(error, "no certificate can name this host", "{host}");
        }
        assert_eq!(cache.stats().minted, 0);
    }

    #[test]
    fn what_is_served_lives_for_half_a_day_more() {
        let now = SystemTime::now();
        let hours = |n: u64| Duration::from_secs(n * 3600);
        assert_eq!(renew_at(now, now + hours(23)), now + hours(11));
        assert_eq!(renew_at(now, now + hours(4)), now + hours(2));
        assert_eq!(renew_at(now, now), now);
    }

    #[test]
    fn warming_up_succeeds_and_counts_nothing() {
        let cache = cache(1);
        cache.warm_up().unwrap();
        assert_eq!(cache.stats(), LeafStats { entries: 0, minted: 0 });
    }
}
