use super::*;

const EXAMPLE: (&str, &str) = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
const SUITE: (&str, &str) = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");

fn at(stamp: &str) -> SystemTime {
    humantime::parse_rfc3339(stamp).unwrap()
}

struct Published {
    name: &'static str,
    method: &'static str,
    host: &'static str,
    target: &'static str,
    headers: &'static [(&'static str, &'static str)],
    payload: &'static str,
    scope: (&'static str, &'static str),
    rules: Rules,
    signature: &'static str,
}

const S3: (&str, &str) = ("us-east-1", "s3");

/// Requests whose signatures AWS has published: its test suite, and the examples of the S3 and IAM manuals.
const PUBLISHED: &[Published] = &[
    Published {
        name: "get-vanilla",
        method: "GET",
        host: "example.amazonaws.com",
        target: "/",
        headers: &[],
        payload: EMPTY_SHA256,
        scope: ("us-east-1", "service"),
        rules: Rules::Plain,
        signature: "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    },
    Published {
        name: "get-vanilla-query-order-key-case",
        method: "GET",
        host: "example.amazonaws.com",
        target: "/?Param2=value2&Param1=value1",
        headers: &[],
        payload: EMPTY_SHA256,
        scope: ("us-east-1", "service"),
        rules: Rules::Plain,
        signature: "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    },
    Published {
        name: "post-vanilla",
        method: "POST",
        host: "example.amazonaws.com",
        target: "/",
        headers: &[],
        payload: EMPTY_SHA256,
        scope: ("us-east-1", "service"),
        rules: Rules::Plain,
        signature: "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    },
    Published {
        name: "IAM ListUsers",
        method: "GET",
        host: "iam.amazonaws.com",
        target: "/?Action=ListUsers&Version=2010-05-08",
        headers: &[("content-type", "application/x-www-form-urlencoded; charset=utf-8")],
        payload: EMPTY_SHA256,
        scope: ("us-east-1", "iam"),
        rules: Rules::Plain,
        signature: "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
    },
    Published {
        name: "S3 GET object",
        method: "GET",
        host: "examplebucket.s3.amazonaws.com",
        target: "/test.txt",
        headers: &[("range", "bytes=0-9")],
        payload: EMPTY_SHA256,
        scope: S3,
        rules: Rules::S3,
        signature: "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    },
    Published {
        name: "S3 PUT object, with a character in the path that is encoded for the signature",
        method: "PUT",
        host: "examplebucket.s3.amazonaws.com",
        target: "/test$file.text",
        headers: &[("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
        payload: "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
        scope: S3,
        rules: Rules::S3,
        signature: "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    },
    Published {
        name: "the same, encoded by the client",
        method: "PUT",
        host: "examplebucket.s3.amazonaws.com",
        target: "/test%24file.text",
        headers: &[("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
        payload: "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
        scope: S3,
        rules: Rules::S3,
        signature: "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    },
    Published {
        name: "S3 GET bucket lifecycle",
        method: "GET",
        host: "examplebucket.s3.amazonaws.com",
        target: "/?lifecycle",
        headers: &[],
        payload: EMPTY_SHA256,
        scope: S3,
        rules: Rules::S3,
        signature: "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    },
    Published {
        name: "S3 list objects",
        method: "GET",
        host: "examplebucket.s3.amazonaws.com",
        target: "/?max-keys=2&prefix=J",
        headers: &[],
        payload: EMPTY_SHA256,
        scope: S3,
        rules: Rules::S3,
        signature: "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    },
    Published {
        name: "S3 chunked upload, its head",
        method: "PUT",
        host: "s3.amazonaws.com",
        target: "/examplebucket/chunkObject.txt",
        headers: &[
            ("content-encoding", "aws-chunked"),
            ("content-length", "66824"),
            ("x-amz-decoded-content-length", "66560"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ],
        payload: "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        scope: S3,
        rules: Rules::S3,
        signature: "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    },
    Published {
        name: "S3 chunked upload with a trailer, its head",
        method: "PUT",
        host: "s3.amazonaws.com",
        target: "/examplebucket/chunkObject.txt",
        headers: &[
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-trailer", "x-amz-checksum-crc32c"),
        ],
        payload: "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        scope: S3,
        rules: Rules::S3,
        signature: "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
    },
];

fn example_keys() -> Credentials {
    crate::secret::aws::keys(EXAMPLE.0, EXAMPLE.1, None)
}

fn signed(case: &Published) -> Signed {
    let (pair, now) = match case.rules {
        Rules::S3 => (EXAMPLE, at("2013-05-24T00:00:00Z")),
        Rules::Hashed | Rules::Plain => (SUITE, at("2015-08-30T12:36:00Z")),
    };
    let request = ToSign {
        method: case.method,
        host: case.host,
        path_and_query: case.target,
        headers: case.headers.to_vec(),
        payload: case.payload,
        rules: case.rules,
    };
    let scope = Scope { region: case.scope.0.into(), service: case.scope.1.into() };
    sign(&request, &crate::secret::aws::keys(pair.0, pair.1, None), &scope, now).unwrap()
}

#[test]
fn published_signatures_come_out() {
    for case in PUBLISHED {
        let signed = signed(case);
        assert_eq!(signed.signature, case.signature, "{}", case.name);
        let authorization = signed.headers.iter().find(|(name, _)| name == "authorization").unwrap();
        assert!(authorization.1.to_str().unwrap().ends_with(&format!("Signature={}", case.signature)));
        assert!(signed.headers.iter().all(|(_, value)| value.is_sensitive()), "{}", case.name);
    }
}

#[test]
fn the_published_chunks_and_their_trailer_come_out() {
    let scope = Scope { region: "us-east-1".into(), service: "s3".into() };
    let key = ChunkKey::new(&example_keys(), &scope, "20130524T000000Z");
    let follow = |seed: &str, expected: &[&str]| {
        let mut previous = seed.to_owned();
        for (size, expected) in [65536, 1024, 0].into_iter().zip(expected) {
            previous = key.chunk(&previous, &sha256_hex(&vec![b'a'; size]));
            assert_eq!(previous, *expected, "{size}");
        }
        previous
    };
    follow(
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        &[
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
            "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        ],
    );
    let last = follow(
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
        &[
            "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
            "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
            "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
        ],
    );
    assert_eq!(
        key.trailer(&last, &sha256_hex(b"x-amz-checksum-crc32c:sOO8/Q==\n")),
        "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435"
    );
}

#[test]
fn the_hash_of_nothing_is_the_constant() {
    assert_eq!(sha256_hex(b""), EMPTY_SHA256);
}

#[test]
fn what_cannot_be_signed_is_an_error() {
    let scope = Scope { region: "us-east-1".into(), service: "s3".into() };
    let request = ToSign {
        method: "PUT",
        host: "s3.amazonaws.com",
        path_and_query: "/a b",
        headers: Vec::new(),
        payload: "UNSIGNED-PAYLOAD",
        rules: Rules::Plain,
    };
    assert!(sign(&request, &example_keys(), &scope, SystemTime::now()).is_err());
}
