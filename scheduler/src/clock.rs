//! Virtual time: the one place that knows how fast simulated time runs.
//!
//! Virtual time is an affine function of the wall's, `virtual = anchor + scale·(wall − anchor)`, with the anchor kept in
//! the store: it neither leaps nor runs back over a restart. At scale 1 both are the same. Snapshots, reports and leases
//! carry wall time; decisions see virtual time.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// What a store keeps of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Anchor {
    /// Wall time at which the two times were joined.
    pub wall: Timestamp,
    /// Virtual time at that moment.
    pub virtual_time: Timestamp,
    /// Virtual seconds per wall second.
    pub scale: f64,
}

/// Converts between wall and virtual time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clock {
    anchor: Anchor,
}

/// A time scale that is not a positive, finite number.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("time scale {0} is out of range; use a number from 0.001 to 10000, 1 for real time")]
pub struct InvalidScale(pub f64);

fn add_seconds(to: Timestamp, seconds: f64) -> Timestamp {
    SignedDuration::try_from_secs_f64(seconds)
        .ok()
        .and_then(|d| to.checked_add(d).ok())
        .unwrap_or(if seconds < 0.0 { Timestamp::MIN } else { Timestamp::MAX })
}

fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

impl Clock {
    /// A clock that runs `scale` times as fast as the wall's from `wall_now` on, going on from `stored` if there is one.
    ///
    /// # Errors
    /// [`InvalidScale`] if the scale is not within 0.001–10000.
    pub fn new(scale: f64, stored: Option<Anchor>, wall_now: Timestamp) -> Result<Self, InvalidScale> {
        if !(0.001..=10_000.0).contains(&scale) {
            return Err(InvalidScale(scale));
        }
        let anchor = match stored {
            Some(a) if a.scale == scale => a,
            Some(a) => {
                let virtual_time = Self { anchor: a }.to_virtual(wall_now);
                Anchor { wall: wall_now, virtual_time, scale }
            }
            None => Anchor { wall: wall_now, virtual_time: wall_now, scale },
        };
        Ok(Self { anchor })
    }

    /// What to store.
    pub fn anchor(&self) -> Anchor {
        self.anchor
    }

    /// Virtual seconds per wall second.
    pub fn scale(&self) -> f64 {
        self.anchor.scale
    }

    /// A wall time as virtual time.
    pub fn to_virtual(&self, wall: Timestamp) -> Timestamp {
        add_seconds(self.anchor.virtual_time, self.anchor.scale * seconds_between(self.anchor.wall, wall))
    }

    /// A virtual time as wall time.
    pub fn to_wall(&self, virtual_time: Timestamp) -> Timestamp {
        let seconds = seconds_between(self.anchor.virtual_time, virtual_time);
        add_seconds(self.anchor.wall, seconds / self.anchor.scale)
    }

    /// A length of wall time, seconds, as virtual seconds.
    pub fn virtual_seconds(&self, wall_seconds: f64) -> f64 {
        wall_seconds * self.anchor.scale
    }

    /// A length of virtual time, seconds, as wall seconds.
    pub fn wall_seconds(&self, virtual_seconds: f64) -> f64 {
        virtual_seconds / self.anchor.scale
    }
}

/// A timestamp as seconds since 1970, as pure modules count time.
pub fn seconds(at: Timestamp) -> f64 {
    at.as_nanosecond() as f64 / 1e9
}

/// The inverse of [`seconds`].
pub fn timestamp(seconds: f64) -> Timestamp {
    add_seconds(Timestamp::UNIX_EPOCH, seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_goes_on_over_a_restart_and_a_change_of_speed() {
        let t0: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let at = |s: i64| t0.checked_add(SignedDuration::from_secs(s)).unwrap();
        let first = Clock::new(20.0, None, t0).unwrap();
        assert_eq!(first.to_virtual(at(3)), at(60));
        assert_eq!(first.to_wall(at(60)), at(3));
        let again = Clock::new(20.0, Some(first.anchor()), at(10)).unwrap();
        assert_eq!(again.to_virtual(at(11)), at(220));
        let slower = Clock::new(1.0, Some(again.anchor()), at(11)).unwrap();
        assert_eq!(slower.to_virtual(at(12)), at(221));
        assert!(Clock::new(f64::NAN, None, t0).is_err());
        assert!(Clock::new(0.0, None, t0).is_err());
    }

    #[test]
    fn extreme_times_saturate() {
        let clock = Clock::new(10_000.0, None, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(clock.to_virtual(Timestamp::MAX), Timestamp::MAX);
    }
}
