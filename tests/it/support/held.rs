//! A database that can be read and takes no changes: a session of the test's own has its cursors
//! locked (or its rows, and then they cannot be read either). The proxy waits, as for any other transaction that is in its way.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, SqliteConnection};
use tokio::runtime::Runtime;

use super::setup::Setup;

/// The lock, until it is released.
pub(crate) struct Held {
    runtime: Runtime,
    session: Session,
}

enum Session {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Held {
    /// Lets the database take nothing from now on.
    #[track_caller]
    pub(crate) fn hold(setup: &Setup) -> Held {
        Held::hold_by(setup, "cursors in exclusive mode")
    }

    /// Lets the database, which is PostgreSQL, neither take nor tell any profile from now on.
    #[track_caller]
    pub(crate) fn hold_rows(setup: &Setup) -> Held {
        Held::hold_by(setup, "profiles in access exclusive mode")
    }

    /// Lets the database, which is PostgreSQL, not tell what it has set aside from now on.
    #[track_caller]
    pub(crate) fn hold_letters(setup: &Setup) -> Held {
        Held::hold_by(setup, "dead_letters in access exclusive mode")
    }

    #[track_caller]
    fn hold_by(setup: &Setup, lock: &str) -> Held {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let session = runtime.block_on(async {
            match &setup.postgres {
                Some(postgres) => {
                    let mut session = PgConnection::connect(&postgres.url()).await.unwrap();
                    let lock = format!("begin; lock table profile_proxy.{lock}");
                    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut session).await.unwrap();
                    Session::Postgres(session)
                }
                None => {
                    let file = setup.proxy.data_folder().join("profiles.db");
                    let options = SqliteConnectOptions::new().filename(file);
                    let mut session = options.connect().await.unwrap();
                    sqlx::raw_sql("begin immediate").execute(&mut session).await.unwrap();
                    Session::Sqlite(session)
                }
            }
        });
        Held { runtime, session }
    }

    /// Lets the database take changes again.
    #[track_caller]
    pub(crate) fn release(self) {
        self.end("rollback");
    }

    /// Changes something itself, and lets go in the same moment.
    #[track_caller]
    pub(crate) fn release_after(self, statements: &str) {
        self.end(&format!("{statements}; commit"));
    }

    #[track_caller]
    fn end(self, statements: &str) {
        let Held { runtime, session } = self;
        let statements = AssertSqlSafe(statements.to_owned());
        runtime.block_on(async {
            match session {
                Session::Postgres(mut session) => {
                    sqlx::raw_sql(statements).execute(&mut session).await.unwrap();
                    session.close().await.unwrap();
                }
                Session::Sqlite(mut session) => {
                    sqlx::raw_sql(statements).execute(&mut session).await.unwrap();
                    session.close().await.unwrap();
                }
            }
        });
    }
}

/// Makes a test of each function on both set-ups, started with `options()` of the same module.
macro_rules! on_both_with_options {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            #[test]
            fn embedded() {
                super::$name($crate::support::setup::Setup::embedded_with(super::options()));
            }

            #[test]
            fn servers() {
                super::$name($crate::support::setup::Setup::servers_with(super::options()));
            }
        })+
    };
}
pub(crate) use on_both_with_options;
