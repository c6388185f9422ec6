//! Measures an OpenAI-compatible endpoint, a closed loop at a time, for calibration (`plimsoll profile`).
//!
//! Prompts are random text that no earlier request had, so that no prefix cache answers; lengths are what the endpoint's
//! own `usage` says; answers have the wanted length by `max_tokens` and `ignore_eos`, where the endpoint takes it. The
//! first request of every client only fills the batch and is not counted.

mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::stream::{Answer, exchange};
use crate::replay::http::{Listed, Target, unknown_model};
use crate::replay::{ReplayEndpoint, ReplayError};
use crate::text::text_of;

/// Lengths of requests are uniform within this share of their means to either side where several clients send them, so
/// that clients do not fall into step.
pub const SPREAD: f64 = 0.2;
/// Multiplier that spreads consecutive numbers over all seeds.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// Text lengths of the first requests, tokens as this crate counts: two, to tell the template from the tokenizer.
const TRIALS: [u32; 2] = [64, 512];
/// Answer tokens of the first requests.
const TRIAL_ANSWER: u32 = 32;
/// An answer of [`TRIAL_ANSWER`] tokens that comes within less than this share of its whole time is not streamed.
const LEAST_SPREAD: f64 = 0.08;

/// What to measure.
#[derive(Debug, Clone)]
pub struct ProfileConfig {
    /// Base address, `http://host:port/v1`; the `/v1` may be left out.
    pub url: String,
    /// Model in the requests.
    pub model: String,
    /// Sent as bearer token.
    pub api_key: Option<String>,
    /// Longest wait for a whole answer.
    pub timeout: Duration,
    /// Seed of the prompts. One that was never used before meets nothing in a prefix cache.
    pub seed: u64,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The address, or the model.
    #[error(transparent)]
    Endpoint(#[from] ReplayError),
    /// The key is missing or wrong.
    #[error("{url} answers {status}: the API key is {}; name the environment variable that holds it with --api-key-env",
        if *given { "not accepted" } else { "missing" })]
    Unauthorized {
        /// The address.
        url: String,
        /// 401 or 403.
        status: u16,
        /// Whether a key was sent.
        given: bool,
    },
    /// The endpoint refused a request.
    #[error("the endpoint refused the request with {status}: {detail}{}",
        if *status == 404 { "; is the address right? It mostly ends in /v1" } else { "" })]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        detail: String,
    },
    /// It answers, but not with a stream.
    #[error(
        "the endpoint answers {content_type:?} instead of a stream of events; it, or a proxy before it, does not stream"
    )]
    NoStream {
        /// The answer's content type.
        content_type: String,
    },
    /// The tokens come all at once.
    #[error(
        "{tokens} tokens came within {spread_ms:.0} ms at the end of an answer of {total_ms:.0} ms: something between here and \
         the engine buffers the stream; measure the engine directly, or turn the buffering off (nginx: proxy_buffering off)"
    )]
    Buffered {
        /// Tokens of the answer.
        tokens: u64,
        /// From the first to the last, milliseconds.
        spread_ms: f64,
        /// From the request to the last, milliseconds.
        total_ms: f64,
    },
    /// The connection, or the stream, broke.
    #[error("{kind}: {detail}")]
    Broken {
        /// What broke, in few words.
        kind: &'static str,
        /// What was said.
        detail: String,
    },
    /// Too slow.
    #[error("no whole answer within {0:?}; allow more time, or shorter requests")]
    Timeout(Duration),
}

/// A load to measure: so many clients, each sending its next request once the last is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedLoop {
    /// Requests under way.
    pub concurrency: u32,
    /// Prompt, tokens.
    pub input_tokens: u32,
    /// Answer, tokens.
    pub output_tokens: u32,
    /// Requests to count, the first of each client aside.
    pub requests: u32,
}

impl ClosedLoop {
    /// With as many requests as make a mean worth having: three of a lone client, else one more of each, and twelve at
    /// least.
    pub fn new(concurrency: u32, input_tokens: u32, output_tokens: u32) -> Self {
        let requests = if concurrency == 1 { 3 } else { concurrency.max(12) };
        Self { concurrency, input_tokens, output_tokens, requests }
    }

    /// Answers that must come one after the other before it is measured.
    pub fn rounds(&self) -> u32 {
        1 + self.requests.div_ceil(self.concurrency.max(1))
    }
}

/// What was measured: over the requests counted, the median of a lone client's, else the mean without the fifth at either
/// end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Requests under way.
    pub concurrency: u32,
    /// Requests counted.
    pub requests: usize,
    /// Mean prompt, tokens.
    pub input_tokens: f64,
    /// Mean prompt tokens that came from a cache all the same.
    pub cached_tokens: f64,
    /// Mean answer, tokens.
    pub output_tokens: f64,
    /// Time to first token, milliseconds.
    pub ttft_ms: f64,
    /// A request's own mean time per token after the first, milliseconds; `None` if answers have one token.
    pub tpot_ms: Option<f64>,
    /// From sending to the last token, milliseconds.
    pub e2e_ms: f64,
}

/// A middle that a hiccup does not move.
fn middle(mut values: Vec<f64>) -> Option<f64> {
    /// Share left out at either end.
    const TRIM: f64 = 0.2;
    /// Fewer values have their median taken.
    const FEW: usize = 5;
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n < FEW {
        let (low, high) = (values.get(n.saturating_sub(1) / 2)?, values.get(n / 2)?);
        return Some(0.5 * (low + high));
    }
    let cut = (TRIM * n as f64) as usize;
    let kept = values.get(cut..n - cut)?;
    Some(kept.iter().sum::<f64>() / kept.len() as f64)
}

fn summary(concurrency: u32, answers: &[Answer]) -> Option<Sample> {
    let n = answers.len() as f64;
    let mean = |f: fn(&Answer) -> f64| answers.iter().map(f).sum::<f64>() / n;
    Some(Sample {
        concurrency,
        requests: answers.len(),
        input_tokens: mean(|a| a.input_tokens as f64),
        cached_tokens: mean(|a| a.cached_tokens as f64),
        output_tokens: mean(|a| a.output_tokens as f64),
        ttft_ms: middle(answers.iter().map(|a| a.ttft_ms).collect())?,
        tpot_ms: middle(answers.iter().filter_map(Answer::tpot_ms).collect()),
        e2e_ms: middle(answers.iter().map(|a| a.e2e_ms).collect())?,
    })
}

/// What the endpoint takes in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Manners {
    ignore_eos: bool,
    usage: bool,
}

/// How lengths of text become lengths of prompts: `template + text · scale` tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tokenizer {
    template: f64,
    scale: f64,
}

impl Tokenizer {
    /// From two prompts: (text tokens as counted here, prompt tokens as the endpoint counts).
    fn from(a: (f64, f64), b: (f64, f64)) -> Self {
        let scale = (b.1 - a.1) / (b.0 - a.0);
        if scale.is_finite() && scale > 0.05 {
            Self { template: (a.1 - scale * a.0).max(0.0), scale }
        } else {
            Self { template: 0.0, scale: 1.0 }
        }
    }

    /// Text that makes a prompt of so many tokens.
    fn text(&self, prompt: u32) -> u32 {
        ((f64::from(prompt) - self.template) / self.scale).round().max(1.0) as u32
    }
}

/// Measures one endpoint.
#[derive(Clone)]
pub struct Profiler {
    config: ProfileConfig,
    target: Target,
    manners: Manners,
    tokenizer: Tokenizer,
    next: Arc<AtomicU64>,
    /// Longest request that the endpoint says it takes, tokens.
    pub max_model_len: Option<u32>,
    /// What the endpoint does not do, and what follows from that.
    pub notes: Vec<String>,
}

impl Profiler {
    /// Meets the endpoint: is it there, does it serve the model, what does it take, does it stream. These first requests
    /// also warm it up.
    ///
    /// # Errors
    /// [`ProfileError`], saying what is wrong and what to do.
    pub async fn connect(config: ProfileConfig) -> Result<Self, ProfileError> {
        let target = Target::new(&config.url, ReplayEndpoint::Chat, config.api_key.as_deref(), &[])?;
        let mut max_model_len = None;
        match target.models(&config.url).await? {
            Listed::Refused(status @ (401 | 403)) => {
                let given = config.api_key.is_some();
                return Err(ProfileError::Unauthorized { url: config.url, status, given });
            }
            Listed::Models(models) => match models.iter().find(|m| m.id == config.model) {
                Some(model) => max_model_len = model.max_model_len,
                None => return Err(unknown_model(&config.url, &config.model, &models).into()),
            },
            // An endpoint without a list is believed.
            Listed::Refused(_) | Listed::Unreadable => {}
        }
        let mut profiler = Self {
            config,
            target,
            manners: Manners { ignore_eos: true, usage: true },
            tokenizer: Tokenizer { template: 0.0, scale: 1.0 },
            next: Arc::new(AtomicU64::new(0)),
            max_model_len,
            notes: Vec::new(),
        };
        profiler.get_to_know().await?;
        Ok(profiler)
    }

    async fn get_to_know(&mut self) -> Result<(), ProfileError> {
        let first = self.first_answer().await?;
        // An answer in one piece shows nothing of the time between tokens either.
        if first.output_tokens >= 8 || first.events == 1 {
            let spread_ms = first.e2e_ms - first.ttft_ms;
            if spread_ms < LEAST_SPREAD * first.e2e_ms {
                let (tokens, total_ms) = (first.output_tokens, first.e2e_ms);
                return Err(ProfileError::Buffered { tokens, spread_ms, total_ms });
            }
        }
        if !self.manners.ignore_eos {
            self.notes.push(
                "the endpoint refuses ignore_eos: answers end where the model ends them, and may be shorter"
                    .to_owned(),
            );
        }
        if !first.usage {
            self.notes.push(
                "the endpoint sends no usage: tokens are counted by the pieces of the stream and by the length of the text"
                    .to_owned(),
            );
        } else {
            let second = self.answer(TRIALS[1], TRIAL_ANSWER).await?;
            let point = |text: u32, a: &Answer| (f64::from(text), a.input_tokens as f64);
            self.tokenizer = Tokenizer::from(point(TRIALS[0], &first), point(TRIALS[1], &second));
        }
        Ok(())
    }

    /// The first answer, with as much as the endpoint takes.
    async fn first_answer(&mut self) -> Result<Answer, ProfileError> {
        let mut refusal = None;
        for (ignore_eos, usage) in [(true, true), (false, true), (true, false), (false, false)] {
            self.manners = Manners { ignore_eos, usage };
            match self.answer(TRIALS[0], TRIAL_ANSWER).await {
                Err(ProfileError::Refused { status: status @ (400 | 422), detail }) => {
                    refusal.get_or_insert(ProfileError::Refused { status, detail });
                }
                other => return other,
            }
        }
        Err(refusal.unwrap_or(ProfileError::Broken { kind: "no answer", detail: String::new() }))
    }

    fn body(&self, text_tokens: u32, answer_tokens: u32) -> Bytes {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let text = text_of((index + 1).wrapping_mul(GOLDEN) ^ self.config.seed, text_tokens);
        let mut body = json!({
            "model": self.config.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": answer_tokens,
            // Varied answers route to varied experts, as real ones do.
            "temperature": 1.0,
            "stream": true,
        });
        if self.manners.usage {
            body["stream_options"] = json!({"include_usage": true});
        }
        if self.manners.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        Bytes::from(body.to_string())
    }

    async fn answer(&self, text_tokens: u32, answer_tokens: u32) -> Result<Answer, ProfileError> {
        let body = self.body(text_tokens, answer_tokens);
        let mut answer = tokio::time::timeout(self.config.timeout, exchange(&self.target, body))
            .await
            .map_err(|_| ProfileError::Timeout(self.config.timeout))?
            .map_err(|e| match e {
                ProfileError::Refused { status: status @ (401 | 403), .. } => ProfileError::Unauthorized {
                    url: self.config.url.clone(),
                    status,
                    given: self.config.api_key.is_some(),
                },
                other => other,
            })?;
        if answer.input_tokens == 0 {
            answer.input_tokens = u64::from(text_tokens);
        }
        Ok(answer)
    }

    /// A length near this one, another one every time.
    fn varied(&self, tokens: u32, spread: f64) -> u32 {
        let number = self.next.fetch_add(1, Ordering::Relaxed).wrapping_add(1).wrapping_mul(GOLDEN);
        // Multiples of the golden ratio are spread evenly, whatever their number.
        let share = (number >> 11) as f64 / (1_u64 << 53) as f64;
        (f64::from(tokens) * (1.0 + spread * (2.0 * share - 1.0))).round().max(2.0) as u32
    }

    /// Measures a load; `progress` is told how many of the answers are there, all rounds counted, and how many there will
    /// be. What is still under way at the end is dropped.
    ///
    /// # Errors
    /// [`ProfileError`] of the first request that fails.
    pub async fn measure(
        &self,
        load: &ClosedLoop,
        mut progress: impl FnMut(u32, u32),
    ) -> Result<Sample, ProfileError> {
        let clients = load.concurrency.max(1);
        let spread = if clients > 1 { SPREAD } else { 0.0 };
        let (send, mut receive) = mpsc::channel(clients as usize);
        let mut running = JoinSet::new();
        for _ in 0..clients {
            let (client, send, load) = (self.clone(), send.clone(), *load);
            running.spawn(async move {
                let mut first = true;
                loop {
                    let input = client.varied(load.input_tokens, spread);
                    let output = client.varied(load.output_tokens, spread);
                    let result = client.answer(client.tokenizer.text(input), output).await;
                    let failed = result.is_err();
                    if send.send((first, result)).await.is_err() || failed {
                        return;
                    }
                    first = false;
                }
            });
        }
        drop(send);
        let mut counted: Vec<Answer> = Vec::with_capacity(load.requests as usize);
        let mut done = 0;
        while let Some((first, result)) = receive.recv().await {
            let answer = result?;
            done += 1;
            progress(done, clients + load.requests);
            if !first {
                counted.push(answer);
            }
            if counted.len() >= load.requests as usize {
                break;
            }
        }
        // Dropping `running` hangs up, and the engine forgets the rest.
        running.abort_all();
        summary(clients, &counted).ok_or(ProfileError::Broken {
            kind: "empty answer",
            detail: "no request was answered".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;
