//! One request on its way through its attempts.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Response, StatusCode};
use tokio::time::Instant;

use super::aside::Aside;
use super::backoff::Jitter;
use super::budget::HostPlace;
use super::decide::{Decision, Outcome, Situation, Why, decide, ground};
use super::layer::Plan;
use super::settings::RetrySettings;
use super::{REASON_UNAUTHORIZED, answer};
use crate::message::body::Body;
use crate::message::failure::{Failure, Fault, Progress};
use crate::message::media::{Media, media};
use crate::message::request::{EgressParts, EgressRequest, Exchange};
use crate::resilience::Inner;
use crate::resilience::idempotency::Keyed;
use crate::resilience::replay::Replay;
use crate::resilience::verdict::{Class, Verdict};

/// One request on its way through its attempts.
pub(super) struct Course {
    plan: Arc<Plan>,
    exchange: Arc<Exchange>,
    /// Absent where nothing is ever sent again.
    replay: Option<Replay>,
    has_key: bool,
    /// The key is outgate's own, and the method is none that may act twice: the app cannot send it again without harm.
    only_here: bool,
    /// Its body is one in which a key can stand.
    json: bool,
    host: HostPlace,
    method: Method,
    method_listed: bool,
    upgrade: bool,
    /// Those that a healed credential cost do not count.
    attempts: u32,
    /// An attempt is under way.
    running: bool,
    /// The budget has been told of the first attempt.
    deposited: bool,
    choice: usize,
    tenant: Option<Arc<str>>,
    healing: Healing,
    aside: Aside,
}

/// What became of the credential of one request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Healing {
    /// It was not refused so far.
    Unneeded,
    /// It was refused, and the attempts since carry another.
    Tried,
    /// The other was accepted.
    Told,
}

/// Another attempt.
pub(super) struct Step {
    pub(super) body: Body,
    pub(super) after: Duration,
}

impl Course {
    pub(super) fn begin(plan: Arc<Plan>, request: &mut EgressRequest, keyed: Keyed) -> Self {
        let method_listed = plan.settings.as_ref().is_some_and(|settings| settings.repeats(&request.method));
        if let Some(settings) = &plan.settings {
            // What the app can repeat without harm is the app's own affair.
            if let Some(hint) = settings.hint.as_ref().filter(|_| !method_listed && keyed != Keyed::ByApp) {
                request.exchange.set_hint(hint.clone(), HeaderValue::from_static("false"));
            }
        }
        let mut course = Self {
            exchange: request.exchange.clone(),
            replay: None,
            has_key: keyed != Keyed::No,
            only_here: keyed == Keyed::ByOutgate && !method_listed,
            json: plan.keys_in_bodies() && media(&request.headers) == Media::Json,
            host: HostPlace::of(&request.target),
            method: request.method.clone(),
            method_listed,
            upgrade: request.upgrade,
            attempts: 0,
            running: false,
            deposited: false,
            choice: plan
                .heal
                .as_ref()
                .map_or(request.credential_choice, |heal| heal.preferred(request.tenant.as_deref())),
            tenant: request.tenant.clone(),
            healing: Healing::Unneeded,
            aside: Aside::default(),
            plan,
        };
        if course.plan.may_repeat() {
            let body = std::mem::replace(&mut request.body, Body::empty());
            let replay = Replay::new(body, course.plan.replay_buffer);
            request.body = replay.attempt().unwrap_or_else(Body::empty);
            course.replay = Some(replay);
        }
        course
    }

    /// Begins an attempt. With the head of the request for another one; who sends once needs none.
    pub(super) fn attempt<S: Inner>(
        &mut self,
        inner: &mut S,
        mut request: EgressRequest,
    ) -> (Option<EgressRequest>, S::Future) {
        self.mark(&mut request);
        let copy = self.replay.as_ref().map(|_| copy_head(&request));
        (copy, inner.call(request))
    }

    /// Whether the attempt succeeded and its answer can be handed on as it is.
    pub(super) fn is_over(&mut self, ended: Outcome) -> bool {
        let Outcome::Answered { verdict: Verdict { class: Class::Success, .. }, .. } = ended else {
            return false;
        };
        if self.exchange.hint().is_some() {
            return false;
        }
        self.worked();
        self.accepted(Class::Success);
        true
    }

    /// Says which credential the attempt shall carry; the layer that injects it says which it carried.
    fn mark(&mut self, request: &mut EgressRequest) {
        self.running = true;
        request.credential_choice = self.choice;
        if self.plan.heal.is_some() {
            self.exchange.facts().credential_choice = self.choice;
        }
    }

    pub(super) fn ended(&mut self, outcome: &Result<Response<Body>, Failure>) -> Outcome {
        self.attempts += 1;
        self.running = false;
        let ended = match outcome {
            Ok(answer) => self.answered(answer),
            Err(failure) => Outcome::Failed { fault: failure.fault, progress: failure.progress },
        };
        if !ended.was_held_back() {
            self.deposit();
        }
        ended
    }

    /// The first attempt was made. What outgate held back itself is no load of the provider's, of which retries may be a part.
    fn deposit(&mut self) {
        if let Some(budget) = self.plan.budget.as_ref().filter(|_| self.plan.settings.is_some())
            && !std::mem::replace(&mut self.deposited, true)
        {
            budget.deposit(self.host);
        }
    }

    /// An error that no row has judged goes to the app as it is, unless the provider asks for another attempt.
    fn answered(&self, answer: &Response<Body>) -> Outcome {
        let (mut verdict, hint) = (self.verdict(answer), self.hint(answer));
        let failed = answer.status().is_client_error() || answer.status().is_server_error();
        if verdict == Verdict::SUCCESS && failed && hint == Some(true) {
            verdict.class = Class::Final;
        }
        Outcome::Answered { verdict, hint }
    }

    /// A 401 means what it says also where no table has judged it.
    fn verdict(&self, answer: &Response<Body>) -> Verdict {
        let verdict = Verdict::of(answer);
        let unjudged = verdict == Verdict::SUCCESS && answer.status() == StatusCode::UNAUTHORIZED;
        if unjudged && self.plan.heal.is_some() {
            return Verdict { class: Class::Unauthorized, acted: false, wait: None };
        }
        verdict
    }

    fn hint(&self, answer: &Response<Body>) -> Option<bool> {
        answer::hint(answer.headers(), self.plan.settings.as_ref()?.hint.as_ref()?)
    }

    /// The next attempt, where there is one. From then on the old attempt has no body any more, and its answer is lost.
    pub(super) async fn next(&mut self, ended: Outcome) -> Option<Step> {
        if let Outcome::Answered { verdict, .. } = ended {
            if verdict.class != Class::Unauthorized {
                self.worked();
                self.accepted(verdict.class);
            } else if let Some(step) = self.heal(ended).await {
                return Some(step);
            }
            if verdict.class == Class::Success {
                return None;
            }
        }
        self.repeat(ended)
    }

    /// After an answer that does not refuse the credential.
    fn worked(&mut self) {
        if self.healing == Healing::Tried
            && let Some(heal) = &self.plan.heal
        {
            self.healing = Healing::Told;
            let choice = self.exchange.facts().credential_choice;
            heal.worked(self.tenant.as_deref(), choice);
        }
    }

    /// In an overlap it counts which of the credentials is still needed.
    fn accepted(&self, class: Class) {
        if let Some(heal) = self.plan.heal.as_ref().filter(|heal| heal.overlaps()) {
            let choice = self.exchange.facts().credential_choice;
            heal.accepted(self.tenant.as_deref(), choice, class == Class::Success);
        }
    }

    async fn heal(&mut self, ended: Outcome) -> Option<Step> {
        let heal = self.plan.heal.clone()?;
        // An upgrade that was refused did nothing either.
        let situation = Situation { upgrade: false, ..self.situation(ended) };
        let ground = ground(&situation).filter(|_| self.healing == Healing::Unneeded)?;
        if !self.replay.as_ref()?.can_repeat() {
            return None;
        }
        let (tried, stamp) = {
            let facts = self.exchange.facts();
            (facts.credential_choice, facts.credential_stamp)
        };
        let next = heal.heal(self.tenant.as_deref(), tried, stamp).await?;
        // The upload may have gone on meanwhile.
        let body = self.replay.as_ref()?.attempt()?;
        self.choice = next;
        self.healing = Healing::Tried;
        self.attempts -= 1;
        self.exchange.judged(REASON_UNAUTHORIZED);
        self.exchange.next_attempt(ground.did_nothing());
        Some(Step { body, after: Duration::ZERO })
    }

    fn repeat(&mut self, ended: Outcome) -> Option<Step> {
        let decision = match &self.plan.settings {
            Some(settings) => self.decide(settings, ended),
            None if is_unauthorized(ended) => Decision::Stop(Why::Unauthorized),
            None => return None,
        };
        let (after, ground, reason) = match decision {
            Decision::Again { after, ground, reason } => (after, ground, reason),
            Decision::Stop(why) => return self.stop(why),
        };
        let Some(body) = self.replay.as_ref().and_then(Replay::attempt) else { return self.stop(Why::Body) };
        self.exchange.judged(reason);
        self.exchange.next_attempt(ground.did_nothing());
        Some(Step { body, after })
    }

    /// The budget is asked last: what is not repeated for another reason costs nothing.
    fn decide(&self, settings: &RetrySettings, ended: Outcome) -> Decision {
        let mut situation = self.situation(ended);
        situation.backoff = settings.backoff.wait(self.attempts - 1, fastrand::f64());
        situation.lateness = match settings.backoff.jitter {
            Jitter::Full => fastrand::u16(..),
            Jitter::None => 0,
        };
        let decision = decide(settings, &situation);
        match (&decision, &self.plan.budget) {
            (Decision::Again { .. }, Some(budget)) if !budget.withdraw(self.host) => {
                decide(settings, &Situation { budget: false, ..situation })
            }
            _ => decision,
        }
    }

    fn situation(&self, ended: Outcome) -> Situation {
        Situation {
            outcome: ended,
            method_listed: self.method_listed,
            has_key: self.has_key || self.has_key_in_body(),
            upgrade: self.upgrade,
            attempts: self.attempts,
            body_whole: self.replay.as_ref().is_some_and(Replay::can_repeat),
            budget: true,
            left: self.exchange.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
            backoff: Duration::ZERO,
            lateness: 0,
        }
    }

    /// Looked for only after a failure, in what is kept of the body.
    fn has_key_in_body(&self) -> bool {
        let Some(keys) = self.plan.idempotency.as_ref().filter(|_| self.json) else { return false };
        let body = self.replay.as_ref().and_then(Replay::whole);
        body.is_some_and(|body| keys.in_body(&self.method, &body))
    }

    fn stop(&self, why: Why) -> Option<Step> {
        if let Some(reason) = why.as_str() {
            self.exchange.judged(reason);
        }
        None
    }

    /// Lets go of what the outcome holds (a permit, a connection), and waits until it is time.
    pub(super) async fn wait(&mut self, outcome: Result<Response<Body>, Failure>, after: Duration) {
        let until = Instant::now() + after;
        // A healed request does not wait; letting its answer go is no queue.
        let _waiting =
            (!after.is_zero()).then(|| Waiting { exchange: &self.exchange, since: Instant::now() });
        self.aside.keep(outcome).await;
        if !after.is_zero() {
            tokio::time::sleep_until(until).await;
        }
    }

    /// outgate had no room for another attempt. That is no answer to what the provider said to the last one, nor a reason for
    /// the app to send again what may have been done; but that a credential was refused, and is healed by now, is nothing
    /// that the app should see.
    fn stands(&mut self, refusal: Failure) -> Result<Response<Body>, Failure> {
        match self.aside.take_answer() {
            Some(answer) if self.healing == Healing::Unneeded && !self.invites(&answer) => Ok(answer),
            _ => Err(self.aside.take_failure().unwrap_or(refusal)),
        }
    }

    /// Whether an answer would have the app send again, under another key, what an attempt before may have done. Where the
    /// provider has a field against that, the answer bears it and may be handed on.
    fn invites(&self, answer: &Response<Body>) -> bool {
        self.only_here
            && self.exchange.acted_earlier()
            && self.exchange.hint().is_none()
            && answer::looks_repeatable(answer.status())
    }

    /// What is told instead of an answer that [invites](Self::invites): how the attempt ended that may have acted, or that
    /// there was one, if it was answered too.
    fn withheld(&mut self, ended: Outcome) -> Failure {
        if ended.is_unjudged() {
            let _ = self.stop(Why::MayHaveActed);
        }
        self.aside.take_failure().unwrap_or_else(|| Failure::sent(Fault::Withheld))
    }

    /// What the app gets.
    pub(super) async fn finish(
        &mut self,
        outcome: Result<Response<Body>, Failure>,
        ended: Outcome,
    ) -> Result<Response<Body>, Failure> {
        let outcome = match outcome {
            Err(failure) if failure.fault.is_for_load() && failure.progress == Progress::NotSent => {
                self.stands(failure)
            }
            Ok(answer) if self.invites(&answer) => Err(self.withheld(ended)),
            outcome => outcome,
        };
        let acted = self.exchange.acted_earlier()
            || matches!(ended, Outcome::Answered { verdict: Verdict { acted: true, .. }, .. });
        let given = match (outcome, self.exchange.hint()) {
            (Ok(answer), Some(hint)) if acted => answer::guarded(answer, hint, self.exchange.deadline).await,
            (outcome, _) => outcome,
        };
        given.map_err(|failure| self.exchange.complete(failure))
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        if self.running && self.exchange.may_have_acted() {
            self.deposit();
        }
        // The deadline ends an attempt from outside, and nobody comes here to judge it.
        let late = || self.exchange.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if self.running && self.plan.settings.is_some() && late() {
            let _ = self.stop(Why::Deadline);
        }
    }
}

/// Time in which nothing is with the provider; noted also when the wait is given up in the middle.
struct Waiting<'a> {
    exchange: &'a Exchange,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.exchange.queued(self.since.elapsed());
    }
}

fn is_unauthorized(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Answered { verdict: Verdict { class: Class::Unauthorized, .. }, .. })
}

/// The request without its body, for another attempt.
fn copy_head(request: &EgressRequest) -> EgressRequest {
    EgressRequest::from(EgressParts {
        method: request.method.clone(),
        target: request.target.clone(),
        path_and_query: request.path_and_query.clone(),
        headers: request.headers.clone(),
        body: Body::empty(),
        upgrade: request.upgrade,
        credential_choice: request.credential_choice,
        tenant: request.tenant.clone(),
        leave: None,
        exchange: request.exchange.clone(),
    })
}
