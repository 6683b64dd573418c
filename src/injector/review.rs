//! AdmissionReview in, AdmissionReview out (`admission.k8s.io/v1`).
//!
//! Only the making of a pod that asks for it by its label is looked at; everything else is allowed as it is. So a selector of the
//! webhook that is too wide does no harm.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::merge::inject;
use super::template::Template;
use super::tree::at;
use super::{INJECT_LABEL, Refusal};

const API: &str = "admission.k8s.io/v1";

/// What became of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// The pod was changed.
    Injected,
    /// There was nothing to do.
    Unchanged,
    /// The pod was refused.
    Refused,
}

/// The answer to a review.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What became of it.
    pub verdict: Verdict,
    /// How many warnings there were.
    pub warnings: usize,
    /// The AdmissionReview that goes back.
    pub review: Value,
}

/// Why a body is not a review that can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No JSON, or not of this shape.
    #[error("the body is not an AdmissionReview")]
    Shape,
    /// Another version.
    #[error("the body is not of admission.k8s.io/v1")]
    Version,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: Kind,
    operation: String,
    sub_resource: Option<String>,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    kind: String,
}

/// Answers a review. Pure, so a dry run is one like another.
///
/// # Errors
///
/// [`Malformed`] where there is nobody to answer: no review, or no uid.
pub fn review(body: &[u8], template: &Template) -> Result<Answer, Malformed> {
    let review: Review = serde_json::from_slice(body).map_err(|_| Malformed::Shape)?;
    if review.kind != "AdmissionReview" {
        return Err(Malformed::Shape);
    }
    if review.api_version != API {
        return Err(Malformed::Version);
    }
    let request = review.request;
    if !is_asked_for(&request) {
        return Ok(answer(&request.uid, Verdict::Unchanged, Map::new(), Vec::new()));
    }
    Ok(match inject(&request.object, template) {
        Err(refusal) => refused(&request.uid, &refusal),
        Ok(injection) => {
            let patch = json_patch::diff(&request.object, &injection.pod);
            let told = injection.warnings.told();
            let mut answer = if patch.0.is_empty() {
                answer(&request.uid, Verdict::Unchanged, Map::new(), told)
            } else {
                let text = json!(patch).to_string();
                let fields = [("patchType", json!("JSONPatch")), ("patch", json!(STANDARD.encode(text)))];
                let fields = fields.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
                answer(&request.uid, Verdict::Injected, fields, told)
            };
            answer.warnings = injection.warnings.count();
            answer
        }
    })
}

fn is_asked_for(request: &Request) -> bool {
    let is_pod = request.kind.group.is_empty() && request.kind.kind == "Pod";
    let is_new = request.operation == "CREATE" && request.sub_resource.as_deref().is_none_or(str::is_empty);
    is_pod && is_new && asks(&request.object)
}

/// Whether a pod asks for the sidecar by its label.
pub fn asks(pod: &Value) -> bool {
    label(pod) == Some("true")
}

/// What the label says.
pub(super) fn label(pod: &Value) -> Option<&str> {
    at(pod.as_object()?, &["metadata", "labels", INJECT_LABEL])?.as_str()
}

fn refused(uid: &str, refusal: &Refusal) -> Answer {
    let status = json!({ "code": 403, "reason": "Forbidden", "message": format!("outgate: {refusal}") });
    let mut fields = Map::new();
    fields.insert("status".to_owned(), status);
    answer(uid, Verdict::Refused, fields, Vec::new())
}

fn answer(uid: &str, verdict: Verdict, fields: Map<String, Value>, warnings: Vec<String>) -> Answer {
    let mut response = fields;
    response.insert("uid".to_owned(), json!(uid));
    response.insert("allowed".to_owned(), json!(verdict != Verdict::Refused));
    if !warnings.is_empty() {
        let told: Vec<String> = warnings.into_iter().map(|one| format!("outgate: {one}")).collect();
        response.insert("warnings".to_owned(), json!(told));
    }
    let review = json!({ "apiVersion": API, "kind": "AdmissionReview", "response": response });
    Answer { verdict, warnings: 0, review }
}
