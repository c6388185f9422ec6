//! How a command fails: what was wrong, and what to do next.

use std::fmt;

/// A command's failure. Shown as `error: …`, then its causes, then `hint: …`.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    code: u8,
}

impl Failure {
    /// A failure with a message of its own.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, source: None, code: 1 }
    }

    /// An exit status that is an answer and needs no words.
    pub fn quiet(code: u8) -> Self {
        Self::new("").code(code)
    }

    /// Whether there is nothing to say.
    pub fn is_quiet(&self) -> bool {
        self.message.is_empty()
    }

    /// A failure caused by another error.
    pub fn caused(
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { source: Some(source.into()), ..Self::new(message) }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the exit status (1 unless set).
    #[must_use]
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The exit status.
    pub fn exit_code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        let mut cause: Option<&dyn std::error::Error> = match &self.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        };
        while let Some(error) = cause {
            write!(f, "\n  because: {error}")?;
            cause = error.source();
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// What a command returns.
pub type Outcome = Result<(), Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_causes_and_hint() {
        let io = std::io::Error::other("port 1 is taken");
        let failure = Failure::caused("failed to listen", io).hint("choose another port");
        assert_eq!(
            failure.to_string(),
            "error: failed to listen\n  because: port 1 is taken\nhint: choose another port"
        );
    }
}
