//! The texts of the presets, built in. A preset is one file under `presets/` and its name here; a test compares the two.

/// The presets by name, in the order of the alphabet.
macro_rules! presets {
    ($($name:literal)*) => {
        const PRESETS: &[(&str, &str)] = &[$(
            ($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/presets/", $name, ".yaml"))),
        )*];
    };
}

presets! {
    "adyen"
    "amplitude"
    "anthropic"
    "apple-sign-in"
    "auth0"
    "aws-s3"
    "aws-ses"
    "aws-sns"
    "azure-openai"
    "clerk"
    "cloudflare-r2"
    "cloudinary"
    "datadog"
    "digitalocean-spaces"
    "exchangerate-host"
    "firebase-auth"
    "firebase-cloud-messaging"
    "github"
    "gmail"
    "google-analytics-4"
    "google-calendar"
    "google-cloud-storage"
    "google-gemini"
    "google-oauth"
    "google-sheets"
    "gopay"
    "hubspot"
    "jira"
    "logrocket"
    "mailchimp"
    "mailgun"
    "mandrill"
    "mixpanel"
    "new-relic"
    "onesignal"
    "openai"
    "paypal"
    "paystack"
    "posthog"
    "resend"
    "salesforce"
    "segment"
    "sendgrid"
    "sentry"
    "slack"
    "square"
    "stripe"
    "supabase"
    "twilio"
    "vonage"
    "zendesk"
}

/// The names of the presets, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The text of a preset, as it lies in the repository.
pub fn text(name: &str) -> Option<&'static str> {
    PRESETS.binary_search_by(|(known, _)| known.cmp(&name)).ok().map(|at| PRESETS[at].1)
}
