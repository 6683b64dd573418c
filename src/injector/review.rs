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
use super::tree::{at, text};
use super::{INJECT_LABEL, Shown};

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
    /// Namespace and name of the pod, for the log; of most pods the beginning of the name, because they have none yet.
    pub pod: String,
    /// What is told to its author, for the log.
    pub said: Vec<String>,
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
    namespace: Option<String>,
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
    let (verdict, fields, said, warnings) = judge(&request, template);
    let review = answer(&request.uid, verdict, fields, &said);
    Ok(Answer { verdict, warnings, review, pod: called(&request), said })
}

/// The verdict, what the response has beside it, the sentences for the author, and how many warnings there were.
fn judge(request: &Request, template: &Template) -> (Verdict, Map<String, Value>, Vec<String>, usize) {
    let mut fields = Map::new();
    if !is_asked_for(request) {
        return (Verdict::Unchanged, fields, Vec::new(), 0);
    }
    match inject(&request.object, template) {
        Err(refusal) => {
            let message = format!("outgate: {refusal}");
            fields.insert(
                "status".to_owned(),
                json!({ "code": 403, "reason": "Forbidden", "message": message }),
            );
            (Verdict::Refused, fields, vec![message], 0)
        }
        Ok(injection) => {
            let patch = json_patch::diff(&request.object, &injection.pod);
            let said = injection.warnings.told().into_iter().map(|one| format!("outgate: {one}")).collect();
            let count = injection.warnings.count();
            if patch.0.is_empty() {
                return (Verdict::Unchanged, fields, said, count);
            }
            // Written from the operations: as a tree they would take their memory once more. Writing them does not fail.
            let written = serde_json::to_vec(&patch).unwrap_or_default();
            fields.insert("patchType".to_owned(), json!("JSONPatch"));
            fields.insert("patch".to_owned(), json!(STANDARD.encode(written)));
            (Verdict::Injected, fields, said, count)
        }
    }
}

/// `shop/shop-7d4b`.
fn called(request: &Request) -> String {
    let metadata = request.object.get("metadata");
    let name = metadata.and_then(|one| text(one, "name").or_else(|| text(one, "generateName")));
    let namespace = request.namespace.as_deref().unwrap_or_default();
    format!("{}/{}", Shown::new(namespace), Shown::new(name.unwrap_or_default()))
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

fn answer(uid: &str, verdict: Verdict, fields: Map<String, Value>, said: &[String]) -> Value {
    let mut response = fields;
    response.insert("uid".to_owned(), json!(uid));
    response.insert("allowed".to_owned(), json!(verdict != Verdict::Refused));
    // A refusal has its words in `status`.
    if !said.is_empty() && verdict != Verdict::Refused {
        response.insert("warnings".to_owned(), json!(said));
    }
    json!({ "apiVersion": API, "kind": "AdmissionReview", "response": response })
}
