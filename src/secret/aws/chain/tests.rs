use super::*;
use crate::secret::fake::{Asked, FakeServer, Reply, ok, upstream_env};

const KEYS: &str = r#"{"Code":"Success","AccessKeyId":"AKIDROLE","SecretAccessKey":"CANARY-secret","Token":"CANARY-session","Expiration":"2040-01-01T00:00:00Z"}"#;
const STS: &str = "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
    <AccessKeyId>AKIDROLE</AccessKeyId><SecretAccessKey>CANARY-secret</SecretAccessKey>\
    <SessionToken>CANARY-session</SessionToken><Expiration>2040-01-01T00:00:00Z</Expiration>\
    </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>";

/// The keys, or the error's code. Nothing of an answer or a file is in an error.
async fn fetch(directory: &Path, yaml: &str) -> Result<(String, bool), String> {
    let config: ChainConfig = serde_yaml::from_str(yaml).unwrap();
    assert!(config.mistakes().is_empty(), "{:?}", config.mistakes());
    match Chain::new(&config, directory, &upstream_env()).fetch().await {
        Ok(Fetched { keys, ends }) => {
            assert_eq!(keys.secret_access_key(), "CANARY-secret");
            Ok((keys.access_key_id().to_owned(), ends.is_some()))
        }
        Err(fault) => {
            assert!(!format!("{fault} {fault:?}").contains("CANARY"), "{fault}");
            Err(fault.code().to_owned())
        }
    }
}

fn files() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "CANARY-token/+\n").unwrap();
    std::fs::write(
        directory.path().join("aws"),
        "[prod]\naws_access_key_id=AKIDPROD\naws_secret_access_key=CANARY-secret\n",
    )
    .unwrap();
    directory
}

#[tokio::test]
async fn a_web_identity_is_exchanged_for_the_keys_of_a_role() {
    let directory = files();
    let server = FakeServer::start(|asked: &Asked| {
        let right = asked.line == "POST /"
            && asked.body.contains("Action=AssumeRoleWithWebIdentity&Version=2011-06-15")
            && asked.body.contains("&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fx")
            && asked.body.contains("&WebIdentityToken=CANARY-token%2F%2B");
        match (right, asked.body.contains("RoleSessionName=odd")) {
            (true, false) => ok(STS),
            (true, true) => ok("<AccessKeyId>CANARY</AccessKeyId>"),
            _ => Reply::Answer(403, "<Error><Message>CANARY</Message></Error>".to_owned()),
        }
    })
    .await;
    let yaml = |file: &str, role: &str, session: &str| {
        format!(
            "web_identity: {{ token_file: {file}, role_arn: '{role}', session_name: {session}, endpoint: '{}' }}",
            server.url
        )
    };
    let role = "arn:aws:iam::1:role/x";
    assert_eq!(fetch(directory.path(), &yaml("token", role, "pod")).await, Ok(("AKIDROLE".to_owned(), true)));
    assert_eq!(fetch(directory.path(), &yaml("token", role, "odd")).await, Err("store_garbled".to_owned()));
    assert_eq!(fetch(directory.path(), &yaml("token", "other", "pod")).await, Err("store_login".to_owned()));
    assert_eq!(fetch(directory.path(), &yaml("none", role, "pod")).await, Err("store_credential".to_owned()));
}

#[tokio::test]
async fn a_container_is_asked_with_its_token() {
    let directory = files();
    let server = FakeServer::start(|asked: &Asked| match (&*asked.line, asked.header("authorization")) {
        ("GET /v1/credentials", "CANARY-token/+") => ok(KEYS),
        ("GET /odd", _) => ok(r#"{"AccessKeyId":"CANARY"}"#),
        ("GET /date", _) => ok(KEYS.replace("2040-01-01T00:00:00Z", "CANARY")),
        _ => Reply::Answer(401, "CANARY".to_owned()),
    })
    .await;
    let yaml = |path: &str, token: &str| {
        format!("container: {{ endpoint: '{}/{path}', token_file: {token} }}", server.url)
    };
    let directory = directory.path();
    assert_eq!(fetch(directory, &yaml("v1/credentials", "token")).await, Ok(("AKIDROLE".to_owned(), true)));
    assert_eq!(fetch(directory, &yaml("v1/credentials", "aws")).await, Err("aws_keys".to_owned()));
    assert_eq!(fetch(directory, &yaml("other", "token")).await, Err("store_denied".to_owned()));
    assert_eq!(fetch(directory, &yaml("odd", "token")).await, Err("store_garbled".to_owned()));
    assert_eq!(fetch(directory, &yaml("date", "token")).await, Err("store_garbled".to_owned()));
}

#[tokio::test]
async fn a_machine_is_asked_within_a_session() {
    let server = FakeServer::start(|asked: &Asked| {
        let session = asked.header("x-aws-ec2-metadata-token") == "CANARY-imds";
        match &*asked.line {
            "PUT /latest/api/token" if asked.header("x-aws-ec2-metadata-token-ttl-seconds") == "60" => {
                Reply::Answer(200, "CANARY-imds".to_owned())
            }
            "GET /latest/meta-data/iam/security-credentials/" if session => {
                Reply::Answer(200, "the-role\n".to_owned())
            }
            "GET /latest/meta-data/iam/security-credentials/the-role" if session => ok(KEYS),
            "GET /latest/meta-data/iam/security-credentials/failed" if session => {
                ok(r#"{"Code":"AssumeRoleUnauthorizedAccess","Message":"CANARY"}"#)
            }
            _ => Reply::Answer(404, "CANARY".to_owned()),
        }
    })
    .await;
    let directory = files();
    let yaml = |more: &str| format!("instance: {{ endpoint: '{}'{more} }}", server.url);
    assert_eq!(fetch(directory.path(), &yaml("")).await, Ok(("AKIDROLE".to_owned(), true)));
    assert_eq!(server.lines().len(), 3);
    assert_eq!(fetch(directory.path(), &yaml(", role: the-role")).await, Ok(("AKIDROLE".to_owned(), true)));
    assert_eq!(server.lines().len(), 2);
    assert_eq!(fetch(directory.path(), &yaml(", role: failed")).await, Err("aws_keys".to_owned()));
    assert_eq!(fetch(directory.path(), &yaml(", role: none")).await, Err("store_status".to_owned()));
    assert_eq!(fetch(directory.path(), &yaml(", role: a/../b")).await, Err("store_garbled".to_owned()));
}

#[tokio::test]
async fn a_profile_is_read_from_its_file() {
    let directory = files();
    let directory = directory.path();
    assert_eq!(
        fetch(directory, "profile: { name: prod, file: aws }").await,
        Ok(("AKIDPROD".to_owned(), false))
    );
    assert_eq!(fetch(directory, "profile: { name: none, file: aws }").await, Err("aws_keys".to_owned()));
    assert_eq!(fetch(directory, "profile: { name: prod, file: none }").await, Err("aws_keys".to_owned()));
}

#[test]
fn over_plain_http_only_metadata_services_and_loopback_are_asked() {
    for (url, allowed) in [
        ("http://169.254.170.2/v2/x", true),
        ("http://169.254.170.23/v1/credentials", true),
        ("http://[fd00:ec2::23]/v1/credentials", true),
        ("http://169.254.169.254", true),
        ("http://127.0.0.1:8080/x", true),
        ("http://localhost:8080/x", true),
        ("http://169.254.1.1/x", false),
        ("http://10.0.0.1/x", false),
        ("http://metadata.example.com/x", false),
        ("https://metadata.example.com/x", true),
    ] {
        assert_eq!(metadata::may_ask(&url.parse().unwrap()), allowed, "{url}");
    }
}

/// A kept chain counts what fails. A good answer is none, on whichever of the ways.
#[tokio::test]
async fn what_is_good_counts_as_no_failure() {
    let server = FakeServer::start(|asked: &Asked| match &*asked.line {
        "PUT /latest/api/token" => Reply::Answer(200, "CANARY-imds".to_owned()),
        "GET /latest/meta-data/iam/security-credentials/" => Reply::Answer(200, "the-role\n".to_owned()),
        "POST /" => ok(STS),
        _ => ok(KEYS),
    })
    .await;
    let directory = files();
    for yaml in [
        format!("instance: {{ endpoint: '{}' }}", server.url),
        format!("container: {{ endpoint: '{}/keys', token_file: token }}", server.url),
        format!("web_identity: {{ token_file: token, role_arn: 'arn:x', endpoint: '{}' }}", server.url),
    ] {
        let config: ChainConfig = serde_yaml::from_str(&yaml).unwrap();
        let chain = Chain::new(&config, directory.path(), &upstream_env());
        for number in 0..20 {
            assert!(chain.fetch().await.is_ok(), "{yaml} {number}");
        }
    }
}
