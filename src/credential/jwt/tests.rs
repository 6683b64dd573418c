//! The examples of RFC 7515 appendix A and RFC 8037 appendix A, and keys in each of their forms.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, KeyPair as _, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
};
use base64::engine::general_purpose::STANDARD;

use super::*;

/// The claims of RFC 7515 appendix A.1.1 to A.3.1.
const CLAIMS: &str = "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}";

/// The key of RFC 7515 appendix A.2.1, as PKCS #1.
const RFC_RSA: &str = concat!(
    "MIIEowIBAAKCAQEAofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd/wWJcyQoTbji9k0l8W26mPddxHmfHQp+Vaw+4qPCJrcS2mJPMEz",
    "P1Pt0Bm4d4QlL+yRT+SFd2lZS+pCgNMsD1W/YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb/7OMg0LOL+bSf63kpaSHSXndS5z5re",
    "xMdbBYUsLA9e+KXBdQOS+UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6/I5IhlJH7aGhyxXFvUK+DWN",
    "moudF8NAco9/h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQIDAQABAoIBABKucaRpzQorw35SbEUAVx8dYXUdZOlJ",
    "cHtiWQ+dC6V8ljxAHj/PLyzTveyI5QO/xkObCyjIL303l2cfUhPu2MFaJdjVzqACXuOrLot/eSFvxjvqVidTtAZExqFRJ9mylUVA",
    "oLvhowVWmC1On95fZCXxTUtxNEG1Xcc7m0rtzJKs45J+N/V9DP1edYH6USyPSWGp6wuA+KgHRnKKVf9GRx80JQY7nVNkL17eHoTW",
    "Ewga+lwi0FEoW9Y7lDtWXYmKBWhUE+U8PGxlJf8f40493HDw1WRQ/aSLoS4QTp3rn7gYgeHEvfJdkkf0UMhlknlo53M09EFPdadQ",
    "4TlUbjqKc50CgYEA4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH/5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB",
    "0Hw/Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn+nXqhJTBgIPgtldC+KDV5z+y2XDwGUcCgYEAuQPEfgmV",
    "tjL0Uyyx88GZFF1fOunH3+7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD/YwD66t62wDmpe/",
    "HlB+TnBA+njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdcCgYAHAp9XcCSrn8wVkMVkKdb7DOX4IKjzdahm",
    "+ctDAJN4O/y7OW5FKebvUjdAIt2GuoTZ71iTG+7F0F+lP88jtjP4U4qe7VHoewl4MKOfXZKTe+YCS1XbNvfgwJ3Ltyl1OH9hWvu2",
    "yza7q+d5PCsDzqtm27kxuvULVeya+TEdAB1ijQKBgQCH/3r6YrVH/uCWGy6bzV1nGNOdjKc9tmkfOJmN54dxdixdpozCQ6U4OxZr",
    "sj3FcOhHBsqAHvX2uuYjagqvo3cOj1TRqNocX40omfCCMx3bD1yPPf/6TI2XECva/ggqEY2mYzmIiA5LVVmc5nrybr+lssFKneey",
    "xN2Wq93S0iJMdQKBgCGHewxzoa1r8ZMD0LETNrToK423K377UCYqXfg5XMclbrjPbEC3YI1ZNqMtuhdBJqUnBi6tjKMF+34Xf0CU",
    "N8ncuXGO2CAYvO8PdyCixHX52ybaDjy1FtCE6yUXjoKNXKvUm7MWGsAYH6f4IegOetN5NvmUMFStCSkh7ixZLkN1",
);

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn rfc_rsa() -> Vec<u8> {
    STANDARD.decode(RFC_RSA).unwrap()
}

/// PKCS #8 around PKCS #1: version, algorithm `rsaEncryption`, octets. Both lengths are of two bytes.
fn pkcs8(pkcs1: &[u8]) -> Vec<u8> {
    let algorithm = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
    let length = |of: usize| u16::try_from(of).unwrap().to_be_bytes();
    let whole = 3 + algorithm.len() + 4 + pkcs1.len();
    let head = [&[0x30, 0x82], &length(whole)[..], &[2, 1, 0], &algorithm, &[4, 0x82], &length(pkcs1.len())];
    [&head.concat(), pkcs1].concat()
}

fn key(algorithm: Algorithm, secret: &str) -> SigningKey {
    SigningKey::read(algorithm, secret.as_bytes()).unwrap()
}

fn part(jwt: &str, at: usize) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(jwt.split('.').nth(at).unwrap()).unwrap()
}

fn input(jwt: &str) -> &[u8] {
    jwt.rsplit_once('.').unwrap().0.as_bytes()
}

#[test]
fn hs256_as_in_rfc_7515_appendix_a_1() {
    let secret = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let key = SigningKey::read(Algorithm::Hs256, &URL_SAFE_NO_PAD.decode(secret).unwrap()).unwrap();
    let jwt = compact(b"{\"typ\":\"JWT\",\r\n \"alg\":\"HS256\"}", CLAIMS.as_bytes(), &key).unwrap();
    assert_eq!(
        *jwt,
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFt\
         cGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    );
}

#[test]
fn rs256_as_in_rfc_7515_appendix_a_2_from_every_form_of_the_key() {
    let der = rfc_rsa();
    let pkcs1 = pem("RSA PRIVATE KEY", &der);
    for text in [pkcs1.clone(), pem("PRIVATE KEY", &pkcs8(&der)), pkcs1.trim_end().replace('\n', "\\n")] {
        let jwt = compact(br#"{"alg":"RS256"}"#, CLAIMS.as_bytes(), &key(Algorithm::Rs256, &text)).unwrap();
        assert_eq!(
            *jwt,
            "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFt\
             cGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
             cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7\
             AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4\
             BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K\
             0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqv\
             hJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrB\
             p0igcN_IoypGlUPQGe77Rw"
        );
    }
}

#[test]
fn ps256_is_verified_by_its_public_key() {
    let key = key(Algorithm::Ps256, &pem("RSA PRIVATE KEY", &rfc_rsa()));
    let jwt = sign(&Header::new(None), &Claims::default(), &key).unwrap();
    let Pair::Rsa(pair) = &key.pair else { unreachable!() };
    let public = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, pair.public_key());
    public.verify(input(&jwt), &part(&jwt, 2)).unwrap();
}

#[test]
fn es256_is_verified_by_its_public_key_from_both_forms() {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap();
    // SEC 1 stands inside PKCS #8, as its last octets (RFC 5958 section 2, RFC 5915 section 3).
    let at = pkcs8.as_ref().windows(5).position(|bytes| bytes == [2, 1, 1, 4, 32]).unwrap();
    let sec1 = pkcs8.as_ref().get(at - 2..).unwrap();
    for text in [pem("PRIVATE KEY", pkcs8.as_ref()), pem("EC PRIVATE KEY", sec1)] {
        let jwt = sign(&Header::new(None), &Claims::default(), &key(Algorithm::Es256, &text)).unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref());
        assert_eq!(part(&jwt, 2).len(), 64);
        public.verify(input(&jwt), &part(&jwt, 2)).unwrap();
    }
}

#[test]
fn eddsa_as_in_rfc_8037_appendix_a_4() {
    let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
    let der = [&[0x30, 46, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 34, 4, 32], &seed[..]].concat();
    let key = key(Algorithm::EdDsa, &pem("PRIVATE KEY", &der));
    let jws = compact(br#"{"alg":"EdDSA"}"#, b"Example of Ed25519 signing", &key).unwrap();
    assert_eq!(
        *jws,
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
         hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    );
}

#[test]
fn claims_last_from_a_minute_ago() {
    let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
    let claims = Claims::lasting(now, Duration::from_secs(600)).text("iss", "app").unique().unwrap();
    let jwt = sign(
        &Header::new(Some("key-1")).field("x5t#S256", "mark"),
        &claims,
        &SigningKey::read(Algorithm::Hs256, b"secret").unwrap(),
    )
    .unwrap();
    let read = |at| serde_json::from_slice::<Value>(&part(&jwt, at)).unwrap();
    assert_eq!(
        read(0),
        serde_json::json!({ "alg": "HS256", "typ": "JWT", "kid": "key-1", "x5t#S256": "mark" })
    );
    assert_eq!((&read(1)["iat"], &read(1)["exp"]), (&999_940.into(), &1_000_540.into()));
    assert_eq!(read(1)["jti"].as_str().unwrap().len(), 22);
    assert_ne!(read(1)["jti"], Claims::default().unique().unwrap().0["jti"]);
}

#[test]
fn what_is_no_key_is_told_without_its_text() {
    let rsa = pem("RSA PRIVATE KEY", &rfc_rsa());
    let no_pem = "it is no private key in PEM (PKCS#8, PKCS#1 or SEC1, not encrypted)";
    for (algorithm, secret, told) in [
        (Algorithm::Rs256, "CANARY", no_pem),
        (
            Algorithm::Rs256,
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----",
            no_pem,
        ),
        (
            Algorithm::Rs256,
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
            misfit(Algorithm::Rs256),
        ),
        (Algorithm::Es256, &rsa, misfit(Algorithm::Es256)),
        (Algorithm::EdDsa, &rsa, misfit(Algorithm::EdDsa)),
    ] {
        let fault = SigningKey::read(algorithm, secret.as_bytes()).err().unwrap();
        assert_eq!(fault, TokenFault::Key(told), "{algorithm:?}");
    }
}
