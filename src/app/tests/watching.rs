//! What clients do to the profile that is watched.

use super::client::{Client, Talk, encode, is_late, is_refusal, is_unknown};
use super::redis::pairs;
use super::watched::{Attempt, End, KEY, SCRIPT, Way};
use crate::resp::value;

impl Client {
    /// One attempt at the profile that is watched; `None` when the connection is gone or the outcome
    /// is unknown.
    pub(super) async fn attempt(&mut self, talk: &mut Talk) -> Option<()> {
        let way = match self.random.below(8) {
            0..3 => Way::Watch,
            3..5 => Way::Script,
            5 => Way::Plain,
            _ => Way::Read,
        };
        let number = self.shared.next_number.get();
        self.shared.next_number.set(number + 1);
        let invoked_us = self.shared.rig.world.now_us();
        let (actor, end) = (self.actor.clone(), End::Unknown);
        let mut attempt = Attempt { number, actor, way, invoked_us, replied_us: u64::MAX, end };
        let field = attempt.field();
        let end = match way {
            Way::Watch => self.swap(talk, &field).await,
            Way::Script => {
                let words = ["EVAL", SCRIPT, "1", KEY, &field];
                let reply = talk.ask(&words).await;
                reply.map(|reply| self.end_of(&reply, b":"))
            }
            Way::Plain => {
                let reply = talk.ask(&["HSET", KEY, &field, "1"]).await;
                reply.map(|reply| self.end_of(&reply, b":"))
            }
            Way::Read => {
                let reply = talk.ask(&["HGETALL", KEY]).await;
                reply.map(|reply| match reply.first() {
                    Some(b'*' | b'%') if !self.shared.rig.is_poisoned() => End::Seen(pairs(&reply)),
                    Some(b'*' | b'%') => End::Unknown,
                    _ => self.end_of(&reply, b"*"),
                })
            }
        };
        if let Some(end) = &end {
            attempt.end = end.clone();
            attempt.replied_us = self.shared.rig.world.now_us();
        }
        self.diary.attempts.push(attempt);
        end.filter(|end| *end != End::Unknown).map(drop)
    }

    /// Adds one to what was read, unless somebody was faster.
    async fn swap(&mut self, talk: &mut Talk, field: &str) -> Option<End> {
        let read = [encode(&["WATCH", KEY]), encode(&["HGET", KEY, "count"])].concat();
        talk.send(&read).await?;
        let (watched, found) = (talk.reply().await?, talk.reply().await?);
        if watched != b"+OK\r\n" || found.starts_with(b"-") {
            // Nothing was written yet, whatever became of it.
            for reply in [&watched, &found].into_iter().filter(|reply| reply.starts_with(b"-")) {
                self.end_of(reply, b"+");
            }
            return talk.ask(&["UNWATCH"]).await.map(|_| End::Nothing);
        }
        let count =
            value(&found).map_or(0, |text| String::from_utf8_lossy(text).parse().unwrap_or(0));
        let pause = self.random.below(12);
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        let next = (count + 1u64).to_string();
        let block = [
            encode(&["MULTI"]),
            encode(&["HSET", KEY, "count", &next]),
            encode(&["HSET", KEY, field, "1"]),
            encode(&["EXEC"]),
        ];
        talk.send(&block.concat()).await?;
        for _ in 0..3 {
            talk.reply().await?;
        }
        let reply = talk.reply().await?;
        Some(match reply.as_slice() {
            b"*-1\r\n" | b"_\r\n" => End::Nothing,
            reply => self.end_of(reply, b"*"),
        })
    }

    /// What a reply says of a write, whose good replies begin so.
    fn end_of(&mut self, reply: &[u8], good: &[u8]) -> End {
        match reply {
            reply if reply.starts_with(good) => End::Done,
            reply if is_unknown(reply) || is_late(reply) => End::Unknown,
            reply if is_refusal(reply) => End::Nothing,
            reply => {
                self.fault("the watched profile", reply);
                End::Unknown
            }
        }
    }
}
