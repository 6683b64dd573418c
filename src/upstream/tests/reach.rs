//! Where a connection may go.

use crate::message::failure::{Fault, Progress};
use crate::upstream::settings::{ProxyResolve, UpstreamProxy};

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn with(settings: UpstreamSettings, env: Arc<UpstreamEnv>) -> Arc<Upstream> {
    Upstream::new(settings, env, None, None).unwrap()
}

fn strict() -> UpstreamSettings {
    UpstreamSettings { addresses: Arc::default(), ..settings(Scheme::Http) }
}

fn fault(result: Result<(u16, Bytes), Failure>) -> Fault {
    let failure = result.unwrap_err();
    assert_eq!(failure.progress, Progress::NotSent);
    failure.fault
}

#[tokio::test]
async fn a_name_that_resolves_to_loopback_is_not_dialled() {
    let origin = Origin::saying(OK).await;
    let upstream = with(strict(), env());
    assert_eq!(fault(fetch(&upstream, get(&origin, "/")).await), Fault::AddressDenied);
    let host = Host::parse("[::ffff:127.0.0.1]").unwrap();
    let failure = upstream.dial_tunnel(&host, origin.address.port(), &Exchange::default()).await.unwrap_err();
    assert_eq!(failure.fault, Fault::AddressDenied);
    let failure = upstream.check(&Host::parse(HOST).unwrap(), 443).await.unwrap_err();
    assert_eq!(failure.fault, Fault::AddressDenied);
    assert_eq!(origin.accepted(), 0);
}

/// SS-14: of a mixed answer only the permitted part is tried, also when it refuses.
#[tokio::test]
async fn a_mixed_answer_is_served_by_its_permitted_part() {
    let origin = Origin::saying(OK).await;
    let mut settings = settings(Scheme::Http);
    settings.addresses = Arc::new(AddressRules {
        allow_private: vec!["127.0.0.2/32".parse().unwrap()],
        allow_metadata: Vec::new(),
    });
    for order in [["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]] {
        let addresses = order.map(|text| text.parse().unwrap()).to_vec();
        let upstream = with(settings.clone(), env_with(addresses));
        // The origin listens on 127.0.0.1 only, which is the address that is refused.
        assert_eq!(fault(fetch(&upstream, get(&origin, "/")).await), Fault::ConnectRefused);
    }
    assert_eq!(origin.accepted(), 0);
}

#[tokio::test]
async fn own_listeners_are_refused_on_every_way() {
    let origin = Origin::saying(OK).await;
    let env = env();
    env.own_listeners.store(Arc::new(OwnListeners::new(vec![origin.address])));
    let upstream = with(settings(Scheme::Http), env.clone());
    assert_eq!(fault(fetch(&upstream, get(&origin, "/")).await), Fault::OwnListener);
    let mut named = settings(Scheme::Http);
    named.connect_to = Some(origin.address);
    let upstream = with(named, env);
    assert_eq!(fault(fetch(&upstream, get(&origin, "/")).await), Fault::OwnListener);
    assert_eq!(origin.accepted(), 0);
}

#[tokio::test]
async fn connect_to_takes_the_place_of_resolving() {
    let origin = Origin::saying(OK).await;
    let env = env();
    let upstream = with(UpstreamSettings { connect_to: Some(origin.address), ..strict() }, env.clone());
    let mut request = get(&origin, "/");
    request.target.host = Host::parse("unknown.test").unwrap();
    assert_eq!(fetch(&upstream, request).await.unwrap().0, 200);
    assert_eq!(env.resolver.questions(), 0);
}

#[tokio::test]
async fn names_and_ports_that_lead_nowhere() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let upstream = plain();
    let failed = fetch(&upstream, request(Scheme::Http, closed.port(), "/")).await;
    assert_eq!(fault(failed), Fault::ConnectRefused);
    let mut unknown = request(Scheme::Http, 80, "/");
    unknown.target.host = Host::parse("unknown.test").unwrap();
    assert_eq!(fault(fetch(&upstream, unknown).await), Fault::Dns);
    let stats = upstream.stats();
    assert_eq!((stats.open, stats.dials_failed), (0, 2));
}

#[tokio::test]
async fn a_corporate_proxy_is_asked_for_the_address_that_was_checked() {
    for (resolve, expected) in [
        (ProxyResolve::Local, "CONNECT 127.0.0.1:8080 HTTP/1.1\r\n"),
        (ProxyResolve::Proxy, "CONNECT api.test:8080 HTTP/1.1\r\n"),
    ] {
        let proxy = Origin::new(move |mut stream, _| async move {
            let asked = read_head(&mut stream).await.unwrap();
            assert!(asked.starts_with(expected), "{asked}");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            read_head(&mut stream).await.unwrap();
            stream.write_all(OK).await.unwrap();
        })
        .await;
        let mut settings = settings(Scheme::Http);
        settings.upstream_proxy = Some(Arc::new(UpstreamProxy {
            host: Host::from_ip(proxy.address.ip()),
            port: proxy.address.port(),
            no_proxy: Vec::new(),
            resolve,
        }));
        let upstream = upstream(settings.clone());
        assert_eq!(fetch(&upstream, request(Scheme::Http, 8080, "/")).await.unwrap().1, "ok");
        // The address rules bind behind a proxy as well.
        if resolve == ProxyResolve::Local {
            settings.addresses = Arc::default();
            let upstream = with(settings, env());
            let refused = fetch(&upstream, request(Scheme::Http, 8080, "/")).await;
            assert_eq!(fault(refused), Fault::AddressDenied);
            assert_eq!(proxy.accepted(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_hangs_is_waited_for_as_long_as_a_connection() {
    let hanging = Resolver::with_lookup(Box::new(|_| Box::pin(std::future::pending())));
    let env = Arc::new(UpstreamEnv {
        resolver: hanging,
        roots: Arc::new(RootCertStore::empty()),
        metrics: Arc::new(crate::telemetry::Metrics::new()),
        own_listeners: ArcSwap::from_pointee(OwnListeners::default()),
    });
    let settings = settings(Scheme::Http);
    let wanted = settings.connect_timeout;
    let upstream = with(settings, env);
    let started = tokio::time::Instant::now();
    assert_eq!(fault(fetch(&upstream, request(Scheme::Http, 80, "/")).await), Fault::DnsTimeout);
    assert_eq!(started.elapsed(), wanted);
}
