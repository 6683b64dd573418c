//! Region and service of a host, by the names that AWS and others who speak S3 give to their endpoints.
//! <https://docs.aws.amazon.com/general/latest/gr/rande.html>

/// What a host's name says. Either may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found<'a> {
    /// The region to sign for.
    pub region: Option<&'a str>,
    /// The name that the service signs with.
    pub service: Option<&'a str>,
}

/// The region that endpoints without one sign for.
const GLOBAL: &str = "us-east-1";
const AWS: [&str; 4] = [".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".on.aws"];
/// Services whose name stands behind the region. Not all: a bucket may have a name like a region's.
const BEHIND: [&str; 4] = ["aoss", "cloudsearch", "es", "queue"];
/// Services whose endpoint has another name than they sign with.
const RENAMED: [(&str, &str); 15] = [
    ("email", "ses"),
    ("ddb", "dynamodb"),
    ("queue", "sqs"),
    ("s3-control", "s3"),
    ("s3-accesspoint", "s3"),
    ("s3-accelerate", "s3"),
    ("s3-fips", "s3"),
    ("s3-external-1", "s3"),
    ("bedrock-runtime", "bedrock"),
    ("bedrock-agent", "bedrock"),
    ("bedrock-agent-runtime", "bedrock"),
    ("lambda-url", "lambda"),
    ("marketplace", "aws-marketplace"),
    ("pinpoint", "mobiletargeting"),
    ("personalize-runtime", "personalize"),
];

/// Reads a host's name, in lower case and without port.
pub(super) fn of(host: &str) -> Found<'_> {
    if let Some(front) = AWS.iter().find_map(|suffix| host.strip_suffix(suffix)) {
        return aws(front);
    }
    let auto = Found { region: Some("auto"), service: Some("s3") };
    if host.ends_with(".r2.cloudflarestorage.com")
        || host == "storage.googleapis.com"
        || host.ends_with(".storage.googleapis.com")
    {
        return auto;
    }
    for suffix in [".digitaloceanspaces.com", ".backblazeb2.com", ".wasabisys.com"] {
        let Some(front) = host.strip_suffix(suffix) else { continue };
        let last = front.rsplit('.').next().filter(|last| *last != "s3");
        return Found { region: last.or(Some(GLOBAL)), service: Some("s3") };
    }
    Found::default()
}

fn aws(front: &str) -> Found<'_> {
    let mut labels: Vec<&str> = front.split('.').collect();
    if labels.last() == Some(&"vpce") {
        labels.pop();
    }
    let mut region = None;
    // `sqs.eu-west-1`, and the older `search-x.eu-west-1.es`.
    if labels.last().is_some_and(|last| is_region(last)) {
        region = labels.pop();
    } else if let [.., before, last] = labels[..]
        && BEHIND.contains(&last)
        && is_region(before)
    {
        region = Some(before);
    }
    if labels.last() == Some(&"dualstack") {
        labels.pop();
    }
    let Some(name) = labels.last().copied() else { return Found::default() };
    // `s3-eu-west-1`: how S3 was written once.
    if let Some(old) = name.strip_prefix("s3-").filter(|old| is_region(old)) {
        return Found { region: Some(old), service: Some("s3") };
    }
    let name = name.strip_suffix("-fips").unwrap_or(name);
    let service = RENAMED.iter().find(|(endpoint, _)| *endpoint == name).map_or(name, |(_, signs)| signs);
    // An accelerated bucket is in the region that it is in.
    let global = (name != "s3-accelerate").then_some(GLOBAL);
    Found { region: region.or(global), service: Some(service) }
}

/// Whether a label is a region: `eu-west-1`, `us-gov-east-1`, `us-iso-west-1`.
fn is_region(label: &str) -> bool {
    let mut parts = label.split('-');
    let first = parts.next().is_some_and(|part| (2..=4).contains(&part.len()) && is_word(part));
    let rest: Vec<&str> = parts.collect();
    let Some((number, words)) = rest.split_last() else { return false };
    first
        && (1..=2).contains(&words.len())
        && words.iter().all(|part| is_word(part))
        && !number.is_empty()
        && number.len() <= 2
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_word(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_tell_region_and_service() {
        for (host, region, service) in [
            ("s3.amazonaws.com", "us-east-1", "s3"),
            ("bucket.s3.amazonaws.com", "us-east-1", "s3"),
            ("my-bucket-1.s3.amazonaws.com", "us-east-1", "s3"),
            ("s3.eu-west-1.amazonaws.com", "eu-west-1", "s3"),
            ("my.bucket.s3.eu-west-1.amazonaws.com", "eu-west-1", "s3"),
            ("bucket.s3-eu-west-1.amazonaws.com", "eu-west-1", "s3"),
            ("bucket.s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1", "s3"),
            ("bucket.s3-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1", "s3"),
            ("bucket.s3-accelerate.amazonaws.com", "", "s3"),
            ("ap-1234.s3-accesspoint.eu-west-1.amazonaws.com", "eu-west-1", "s3"),
            ("1234.s3-control.eu-west-1.amazonaws.com", "eu-west-1", "s3"),
            ("s3.cn-north-1.amazonaws.com.cn", "cn-north-1", "s3"),
            ("bucket.vpce-1a.s3.us-east-1.vpce.amazonaws.com", "us-east-1", "s3"),
            ("email.eu-west-1.amazonaws.com", "eu-west-1", "ses"),
            ("sqs.eu-west-1.amazonaws.com", "eu-west-1", "sqs"),
            ("eu-west-1.queue.amazonaws.com", "eu-west-1", "sqs"),
            ("sqs.eu-west-1.api.aws", "eu-west-1", "sqs"),
            ("sns.ap-southeast-2.amazonaws.com", "ap-southeast-2", "sns"),
            ("sts.amazonaws.com", "us-east-1", "sts"),
            ("iam.amazonaws.com", "us-east-1", "iam"),
            ("email-fips.us-east-1.amazonaws.com", "us-east-1", "ses"),
            ("bedrock-runtime-fips.us-east-1.amazonaws.com", "us-east-1", "bedrock"),
            ("1234.s3-control-fips.us-west-2.amazonaws.com", "us-west-2", "s3"),
            ("secretsmanager-fips.us-east-1.amazonaws.com", "us-east-1", "secretsmanager"),
            ("abc.execute-api.eu-west-1.amazonaws.com", "eu-west-1", "execute-api"),
            ("123.ddb.eu-west-1.amazonaws.com", "eu-west-1", "dynamodb"),
            ("streams.dynamodb.eu-west-1.amazonaws.com", "eu-west-1", "dynamodb"),
            ("bedrock-runtime.us-west-2.amazonaws.com", "us-west-2", "bedrock"),
            ("runtime.sagemaker.us-west-2.amazonaws.com", "us-west-2", "sagemaker"),
            ("search-x.eu-west-1.es.amazonaws.com", "eu-west-1", "es"),
            ("x.lambda-url.eu-west-1.on.aws", "eu-west-1", "lambda"),
            ("acc.r2.cloudflarestorage.com", "auto", "s3"),
            ("storage.googleapis.com", "auto", "s3"),
            ("bucket.nyc3.digitaloceanspaces.com", "nyc3", "s3"),
            ("s3.us-west-004.backblazeb2.com", "us-west-004", "s3"),
            ("s3.wasabisys.com", "us-east-1", "s3"),
            ("minio.internal", "", ""),
            ("evilamazonaws.com", "", ""),
            ("s3.amazonaws.com.evil.example", "", ""),
        ] {
            let found = of(host);
            assert_eq!(
                (found.region.unwrap_or(""), found.service.unwrap_or("")),
                (region, service),
                "{host}"
            );
        }
    }
}
