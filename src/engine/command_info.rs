//! COMMAND: which commands there are, made from the command table and nothing else.
//!
//! Listed are the commands that this store and the proxy answer. What the table does not know
//! (tips, key specifications, the documentation itself) is left empty rather than made up.

use crate::command::{self, Access, Category, Keys, Route, Spec, TABLE};
use crate::resp::{Limits, ReplyWriter, Scanner, push_command};

use super::arguments::{SYNTAX, is_word};
use super::subcommands::Subcommand;
use super::{Answer, Call, Engine, glob, handler};

const COMMAND: &[Subcommand] = &[
    Subcommand { name: "command|count", arity: 2, handler: Some(Engine::command_count) },
    Subcommand { name: "command|docs", arity: -2, handler: Some(Engine::command_docs) },
    Subcommand { name: "command|getkeys", arity: -4, handler: Some(Engine::command_getkeys) },
    Subcommand { name: "command|getkeysandflags", arity: -4, handler: None },
    Subcommand { name: "command|help", arity: 2, handler: None },
    Subcommand { name: "command|info", arity: -2, handler: Some(Engine::command_info) },
    Subcommand { name: "command|list", arity: -2, handler: Some(Engine::command_list) },
];

/// What a listed command has to match.
enum Filter<'a> {
    Everything,
    /// There are no modules.
    Nothing,
    Category(&'a [u8]),
    Pattern(&'a [u8]),
}

impl Engine {
    pub(super) fn command(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        if call.len() > 1 {
            return self.subcommand(COMMAND, call, reply);
        }
        reply.array(listed().count());
        listed().for_each(|spec| write_info(spec, reply));
        Ok(())
    }

    fn command_count(&mut self, _call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        reply.integer(listed().count() as i64);
        Ok(())
    }

    fn command_info(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let names = call.request.arguments(2);
        if names.len() == 0 {
            reply.array(listed().count());
            listed().for_each(|spec| write_info(spec, reply));
            return Ok(());
        }
        reply.array(names.len());
        for name in names {
            match command::find(name).filter(|spec| is_listed(spec)) {
                Some(spec) => write_info(spec, reply),
                None => reply.null(),
            }
        }
        Ok(())
    }

    fn command_docs(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let named = || {
            let found = call.request.arguments(2).filter_map(command::find);
            found.filter(|spec| is_listed(spec))
        };
        match call.len() {
            2 => {
                reply.map(listed().count());
                listed().for_each(|spec| write_docs(spec, reply));
            }
            _ => {
                reply.map(named().count());
                named().for_each(|spec| write_docs(spec, reply));
            }
        }
        Ok(())
    }

    fn command_list(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let argument = call.argument(4);
        let filter = match (call.len(), call.argument(2), call.argument(3)) {
            (2, ..) => Filter::Everything,
            (5, by, _) if !is_word(by, "filterby") => return Err(SYNTAX),
            (5, _, kind) if is_word(kind, "module") => Filter::Nothing,
            (5, _, kind) if is_word(kind, "aclcat") => Filter::Category(argument),
            (5, _, kind) if is_word(kind, "pattern") => Filter::Pattern(argument),
            _ => return Err(SYNTAX),
        };
        let wanted = |spec: &&Spec| match filter {
            Filter::Everything => true,
            Filter::Nothing => false,
            Filter::Category(name) => categories(spec).any(|category| is_word(name, category)),
            Filter::Pattern(pattern) => glob::matches_any_case(pattern, spec.name.as_bytes()),
        };
        reply.array(listed().filter(wanted).count());
        listed().filter(wanted).for_each(|spec| reply.bulk(spec.name.as_bytes()));
        Ok(())
    }

    /// COMMAND GETKEYS command [argument ...]; it knows every command of the table.
    fn command_getkeys(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let spec = command::find(call.argument(2)).ok_or("ERR Invalid command specified")?;
        if spec.keys == Keys::None {
            return Err("ERR The command has no key arguments");
        }
        if !spec.takes(call.len() - 2) {
            return Err("ERR Invalid number of arguments specified for command");
        }
        let invalid = "ERR Invalid arguments specified for command";
        let arguments: Vec<&[u8]> = call.request.arguments(2).collect();
        let mut bytes = Vec::new();
        push_command(&mut bytes, &arguments, |_, _| {});
        let mut scanner = Scanner::new(Limits::default());
        scanner.scan(&bytes).ok().flatten().ok_or(invalid)?;
        let request = scanner.request(&bytes);
        match spec.keys(&request).count() {
            0 => Err(invalid),
            keys => {
                reply.array(keys);
                spec.keys(&request).for_each(|key| reply.bulk(key));
                Ok(())
            }
        }
    }
}

/// The commands that have an answer on this upstream.
fn listed() -> impl Iterator<Item = &'static Spec> {
    TABLE.iter().filter(|spec| is_listed(spec))
}

fn is_listed(spec: &Spec) -> bool {
    match spec.route {
        // It compares two sides, and here is only one.
        Route::Local(command::Local::ProfileCheck) => false,
        Route::Local(_) => true,
        _ => handler(spec.name).is_some(),
    }
}

/// Writes the ten parts of an entry, as Redis 7.0 has them.
fn write_info(spec: &Spec, reply: &mut ReplyWriter<'_>) {
    let (first, last, step) = match spec.keys {
        Keys::Range(first, last, step) => (first, last, step),
        _ => (0, 0, 0),
    };
    reply.array(10);
    reply.bulk(spec.name.as_bytes());
    reply.integer(spec.arity.into());
    let flag = match spec.access {
        Access::Read => Some("readonly"),
        Access::Write => Some("write"),
        Access::Neither => None,
    };
    reply.set(flag.iter().count());
    flag.iter().for_each(|flag| reply.simple(flag));
    for number in [first, last, step] {
        reply.integer(number.into());
    }
    reply.set(categories(spec).count());
    categories(spec).for_each(|category| reply.simple(&format!("@{category}")));
    for _tips_then_key_specifications_then_subcommands in 0..3 {
        reply.array(0);
    }
}

/// Writes a name, where its documentation is, and its group.
fn write_docs(spec: &Spec, reply: &mut ReplyWriter<'_>) {
    let group = match spec.category {
        Category::Keyspace => "generic",
        Category::SortedSet => "sorted-set",
        Category::Transaction => "transactions",
        Category::Server => "server",
        other => category_name(other).unwrap_or_default(),
    };
    reply.bulk(spec.name.as_bytes());
    reply.map(2);
    // Without a summary redis-cli's `help` would print `(null)`.
    reply.bulk(b"summary");
    let summary = match spec.name.starts_with("profile.") {
        true => "a command of the proxy; see PROFILE.HELP".to_owned(),
        false => format!("see https://redis.io/docs/latest/commands/{}", spec.name),
    };
    reply.bulk(summary.as_bytes());
    reply.bulk(b"group");
    reply.bulk(group.as_bytes());
}

/// Returns the ACL categories of a command, as far as the table knows them.
fn categories(spec: &Spec) -> impl Iterator<Item = &'static str> + use<> {
    let access = match spec.access {
        Access::Read => Some("read"),
        Access::Write => Some("write"),
        Access::Neither => None,
    };
    category_name(spec.category).into_iter().chain(access)
}

fn category_name(category: Category) -> Option<&'static str> {
    Some(match category {
        Category::Bitmap => "bitmap",
        Category::Connection => "connection",
        Category::Geo => "geo",
        Category::Hash => "hash",
        Category::HyperLogLog => "hyperloglog",
        Category::Keyspace => "keyspace",
        Category::List => "list",
        Category::PubSub => "pubsub",
        Category::Scripting => "scripting",
        // Redis has no category for it: such commands are `@admin`, `@dangerous`, or neither.
        Category::Server => return None,
        Category::Set => "set",
        Category::SortedSet => "sortedset",
        Category::Stream => "stream",
        Category::String => "string",
        Category::Transaction => "transaction",
    })
}
