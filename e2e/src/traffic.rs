//! Requests without pause while something else happens, and the count of what became of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::Error;
use crate::openai::{self, Streamed};

/// What became of the requests of one [`Traffic`].
#[derive(Debug, Default)]
pub struct Counts {
    /// Streamed answers that came whole.
    pub whole: usize,
    /// Streamed answers that an engine had begun and that broke off or ended in an error.
    pub lost: Vec<String>,
    /// Requests for a stream that were answered with an error before the first token.
    pub not_begun: Vec<String>,
    /// Short requests that were answered.
    pub answered: usize,
    /// Short requests that were not.
    pub unanswered: Vec<String>,
}

impl Counts {
    /// Requests that failed without an engine's having begun an answer that the client saw.
    pub fn refused(&self) -> usize {
        self.not_begun.len() + self.unanswered.len()
    }

    /// What the lost and the refused were told, and how often: a line each, which begins with a line break.
    pub fn reasons(&self) -> String {
        let mut reasons = std::collections::BTreeMap::<&str, usize>::new();
        for reason in self.lost.iter().chain(&self.not_begun).chain(&self.unanswered) {
            *reasons.entry(reason).or_default() += 1;
        }
        let line = |(reason, times): (&str, usize)| {
            format!("\n      {times} × {}", reason.chars().take(300).collect::<String>())
        };
        reasons.into_iter().map(line).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} streams whole, {} lost, {} refused; {} short requests answered, {} refused",
            self.whole,
            self.lost.len(),
            self.not_begun.len(),
            self.answered,
            self.unanswered.len()
        )?;
        f.write_str(&self.reasons())
    }
}

/// Clients that ask again as soon as they have their answer.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Counts>,
}

impl Traffic {
    /// Starts `streams` clients of long streams of `tokens` tokens and one that asks short questions, ten a second at
    /// most.
    pub fn start(base: &str, model: &str, streams: usize, tokens: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for client in 0..streams {
            let (base, model, stop) = (base.to_owned(), model.to_owned(), Arc::clone(&stop));
            clients.spawn(async move { stream(&base, &model, client, tokens, &stop).await });
        }
        let (base, model, ended) = (base.to_owned(), model.to_owned(), Arc::clone(&stop));
        clients.spawn(async move { ask(&base, &model, &ended).await });
        Self { stop, clients }
    }

    /// Lets every client finish its last request; what became of them all.
    ///
    /// # Errors
    /// If a client ends abnormally.
    pub async fn finish(mut self) -> Result<Counts, Error> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Counts::default();
        while let Some(counts) = self.clients.join_next().await {
            let counts = counts?;
            all.whole += counts.whole;
            all.lost.extend(counts.lost);
            all.not_begun.extend(counts.not_begun);
            all.answered += counts.answered;
            all.unanswered.extend(counts.unanswered);
        }
        Ok(all)
    }
}

async fn stream(base: &str, model: &str, client: usize, tokens: u32, stop: &AtomicBool) -> Counts {
    let mut counts = Counts::default();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        match openai::stream(base, model, &format!("client {client}, story {number}"), tokens).await {
            Streamed::Whole { .. } => counts.whole += 1,
            Streamed::Lost { pieces, why } => counts.lost.push(format!("after {pieces} pieces: {why}")),
            Streamed::NotBegun { why } => {
                counts.not_begun.push(why);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    counts
}

async fn ask(base: &str, model: &str, stop: &AtomicBool) -> Counts {
    let mut counts = Counts::default();
    while !stop.load(Ordering::Relaxed) {
        match openai::chat(base, model, "hello", 4, false).await {
            Ok(reply) if reply.status == 200 && reply.pieces > 0 => counts.answered += 1,
            Ok(reply) => counts.unanswered.push(format!("{} {}", reply.status, reply.text)),
            Err(error) => counts.unanswered.push(openai::causes(error.as_ref())),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    counts
}
