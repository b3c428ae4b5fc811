//! The schema's word on one profile write, before anything else happens.
//!
//! Rules about a value in the request are decided here. Rules about a value that only Redis knows
//! (a counter's bounds) are decided at Redis, by a guard that goes with the increment; the schema
//! says when none is needed, which for a counter with `min = 0` that counts up is always.

use crate::dispatch::{CommandError, Proxy, Scripts};
use crate::{
    command::{ProfileWrite, Spec},
    resp::{Request, parse_integer},
    schema::{Bounds, FloatBounds, Kind, Mode, Violation},
};

/// Bytes of a profile's key.
const KEY_BYTES_MAX: usize = 1024;
/// Bytes of one write to a profile.
const WRITE_BYTES_MAX: usize = 64 << 20;

/// What is left to be decided where the current value is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(in crate::dispatch) enum Guard {
    /// Nothing.
    #[default]
    None,
    /// Nothing may stop the write, but its result is to be checked and counted (`warn` mode).
    Watch,
    /// The increment is in a form that only Redis reads.
    Unread,
    /// HINCRBY only within these bounds of the current value.
    Integer(Bounds),
    /// HINCRBYFLOAT only within these bounds of the result.
    Float(FloatBounds),
}

impl Proxy {
    /// Tells whether a write to a profile is accepted: its size, the schema, and the journal. What
    /// `warn` mode lets pass is counted, unless the write was checked and is tried `again`.
    pub(in crate::dispatch) fn check_write(
        &self,
        spec: &Spec,
        kind: &Kind,
        write: ProfileWrite,
        request: &Request<'_>,
        again: bool,
    ) -> Result<Guard, CommandError> {
        check_size(spec, request)?;
        let guard = self.check(kind, write, request, again)?;
        self.room()?;
        Ok(guard)
    }

    /// Checks a write against the schema of its kind, in the kind's mode.
    fn check(
        &self,
        kind: &Kind,
        write: ProfileWrite,
        request: &Request<'_>,
        again: bool,
    ) -> Result<Guard, CommandError> {
        let verdict = match (kind.mode(), write) {
            (_, ProfileWrite::Script) if self.scripts == Scripts::Refuse => {
                return Err(CommandError::Script);
            }
            (Mode::Off, _) => return Ok(Guard::None),
            (mode, ProfileWrite::SetFields | ProfileWrite::SetAbsent) => {
                self.check_fields(kind, mode, request, again).map(|()| Guard::None)
            }
            (_, ProfileWrite::Increment) => check_increment(kind, request),
            (_, ProfileWrite::IncrementFloat) => check_increment_float(kind, request),
            _ => Ok(Guard::None),
        };
        match (verdict, kind.mode()) {
            (Ok(Guard::None), _) => Ok(Guard::None),
            (Ok(Guard::Unread), _) => self.check_unread(kind, request),
            (Ok(_), Mode::Warn) => Ok(Guard::Watch),
            (Ok(guard), _) => Ok(guard),
            (Err(violation), Mode::Warn) => {
                self.let_pass(kind, &violation, again);
                Ok(Guard::None)
            }
            (Err(violation), _) => Err(self.violated(violation)),
        }
    }

    /// On a declared field what cannot be judged is refused; elsewhere Redis decides.
    fn check_unread(&self, kind: &Kind, request: &Request<'_>) -> Result<Guard, CommandError> {
        let field = request.argument(2);
        match kind.fields().iter().any(|declared| declared.name().as_bytes() == field) {
            true => Err(CommandError::NotAFloat),
            false => Ok(Guard::None),
        }
    }

    /// Counts a violation that refuses the command.
    pub(super) fn violated(&self, violation: Violation) -> CommandError {
        self.metrics.violation(violation.rule().label());
        CommandError::Schema(violation)
    }

    fn let_pass(&self, kind: &Kind, violation: &Violation, again: bool) {
        if !again {
            self.outcome.borrow_mut().warn(kind, violation);
        }
    }

    /// Checks each pair; in `warn` mode every broken rule is counted and none is an end.
    fn check_fields(
        &self,
        kind: &Kind,
        mode: Mode,
        request: &Request<'_>,
        again: bool,
    ) -> Result<(), Violation> {
        let mut arguments = request.arguments(2);
        while let (Some(field), Some(value)) = (arguments.next(), arguments.next()) {
            match kind.check_set(field, value) {
                Err(violation) if mode == Mode::Warn => {
                    self.let_pass(kind, &violation, again);
                }
                verdict => verdict?,
            }
        }
        Ok(())
    }
}

/// Refuses what no database takes, before it is acknowledged: a row's key goes into an index.
fn check_size(spec: &Spec, request: &Request<'_>) -> Result<(), CommandError> {
    if request.bytes().len() > WRITE_BYTES_MAX {
        return Err(CommandError::WriteTooLarge);
    }
    let too_long = |key: &[u8]| (key.len() > KEY_BYTES_MAX).then_some(CommandError::KeyTooLong);
    spec.find_key(request, too_long).map_or(Ok(()), Err)
}

fn check_increment(kind: &Kind, request: &Request<'_>) -> Result<Guard, Violation> {
    // What is no integer is left to Redis, which refuses it in its own words.
    let Some(by) = parse_integer(request.argument(3)) else { return Ok(Guard::None) };
    Ok(match kind.check_increment(request.argument(2), by)? {
        Bounds::Free => Guard::None,
        bounds => Guard::Integer(bounds),
    })
}

fn check_increment_float(kind: &Kind, request: &Request<'_>) -> Result<Guard, Violation> {
    let text = std::str::from_utf8(request.argument(3)).ok();
    // Redis reads more forms than we do (hexadecimal). The type of the field is checked in any case,
    // and a form that cannot be judged is not a number here (`Guard::Unread`).
    let by = text.and_then(|text| text.parse::<f64>().ok());
    let bounds = kind.check_increment_float(request.argument(2), by.unwrap_or(1.0))?;
    let Some(_) = by else { return Ok(Guard::Unread) };
    Ok(match bounds {
        FloatBounds::Free => Guard::None,
        bounds => Guard::Float(bounds),
    })
}
