//! Logins by both kinds of hashes, what a refusal costs, and what never leaks.

use argon2::password_hash::{PasswordHasher, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};

use super::*;

/// The least that argon2 allows, so that the tests are quick.
fn argon2id(password: &str, passes: u32) -> String {
    let params = Params::new(8, passes, 1, None).unwrap();
    let salt = SaltString::from_b64("c2FsdHNhbHRzYWx0").unwrap();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password(password.as_bytes(), &salt).unwrap().to_string()
}

fn sha256_hash(password: &str) -> String {
    let digits = sha256(password.as_bytes()).into_iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", digits.collect::<String>())
}

fn user(name: &str, password_hash: impl Into<String>) -> UserConfig {
    UserConfig { name: name.into(), password_hash: password_hash.into() }
}

fn auth(users: &[UserConfig]) -> Auth {
    Auth::compile(users).unwrap()
}

/// What the attempt comes to, and whether it took a costly check.
fn login(auth: &Auth, name: &str, password: &[u8]) -> (Option<String>, bool) {
    let named = |identity: Identity| identity.name().to_owned();
    match auth.verify(name.as_bytes(), password) {
        Verdict::Accepted(identity) => (Some(named(identity)), false),
        Verdict::Refused => (None, false),
        Verdict::Costly(check) => (check.run().map(named), true),
    }
}

fn accepted(name: &str, costly: bool) -> (Option<String>, bool) {
    (Some(name.to_owned()), costly)
}

#[test]
fn without_users_nobody_needs_to_log_in_and_nobody_can() {
    let auth = auth(&[]);
    assert!(!auth.required());
    assert_eq!(login(&auth, DEFAULT_NAME, b""), (None, false));
}

#[test]
fn sha256_passwords_are_decided_at_once() {
    let auth = auth(&[user("app", sha256_hash("secret")), user("default", sha256_hash("\0é"))]);
    assert!(auth.required());
    assert_eq!(login(&auth, "app", b"secret"), accepted("app", false));
    assert_eq!(login(&auth, DEFAULT_NAME, "\0é".as_bytes()), accepted("default", false));
    let wrong: [&[u8]; 7] =
        [b"", b"Secret", b"secret ", b"secre", b"secret\0", b"\xff", "\0é".as_bytes()];
    for password in wrong {
        assert_eq!(login(&auth, "app", password), (None, false), "{password:?}");
    }
    assert_eq!(login(&auth, "App", b"secret"), (None, false));
    assert_eq!(login(&auth, "", b"secret"), (None, false));
}

#[test]
fn a_published_digest_is_read_in_either_case_of_its_digits() {
    let digits = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let lower = auth(&[user("app", format!("sha256:{digits}"))]);
    let upper = auth(&[user("app", format!("sha256:{}", digits.to_uppercase()))]);
    for auth in [lower, upper] {
        assert_eq!(login(&auth, "app", b"secret"), accepted("app", false));
    }
}

#[test]
fn an_argon2id_password_is_costly_once_and_then_remembered() {
    let auth = auth(&[user("app", argon2id("secret", 1)), user("web", argon2id("other", 1))]);
    assert_eq!(login(&auth, "app", b"wrong"), (None, true));
    assert_eq!(login(&auth, "app", b"secret"), accepted("app", true));
    assert_eq!(login(&auth, "app", b"secret"), accepted("app", false));
    // A remembered success opens neither another password nor another user.
    assert_eq!(login(&auth, "app", b"wrong"), (None, true));
    assert_eq!(login(&auth, "web", b"secret"), (None, true));
    assert_eq!(login(&auth, "web", b"other"), accepted("web", true));
    assert_eq!(login(&auth, "app", b"secret"), accepted("app", false));
}

#[test]
fn every_refusal_costs_the_same_where_argon2id_is_in_use() {
    let users = [
        user("cheap", argon2id("secret", 1)),
        user("dear", argon2id("secret", 3)),
        user("program", sha256_hash("secret")),
    ];
    let auth = auth(&users);
    assert_eq!(login(&auth, "program", b"secret"), accepted("program", false));
    assert_eq!(login(&auth, "program", b"wrong"), (None, true));
    assert_eq!(login(&auth, "nobody", b"wrong"), (None, true));
    // The decoy's own password opens nothing, and is not remembered.
    assert_eq!(login(&auth, "nobody", b"secret"), (None, true));
    assert_eq!(login(&auth, "nobody", b"secret"), (None, true));
    let dearest = 8 * 3;
    assert_eq!(auth.decoy.as_ref().unwrap().cost(), dearest);
}

#[test]
fn a_password_beyond_the_limit_is_refused_without_work() {
    let long = "x".repeat(PASSWORD_BYTES_MAX + 1);
    let auth = auth(&[user("app", argon2id(&long, 1)), user("web", sha256_hash(&long))]);
    assert_eq!(login(&auth, "app", long.as_bytes()), (None, false));
    assert_eq!(login(&auth, "web", long.as_bytes()), (None, false));
}

#[test]
fn a_costly_check_can_run_on_another_thread() {
    let auth = auth(&[user("app", argon2id("secret", 1))]);
    let Verdict::Costly(check) = auth.verify(b"app", b"secret") else { panic!("not costly") };
    let identity = std::thread::spawn(move || check.run()).join().unwrap();
    assert_eq!(identity.unwrap().name(), "app");
}

#[test]
fn all_faults_are_reported_and_show_no_hash() {
    let hash = argon2id("secret", 1);
    let cut = hash.rsplit_once('$').unwrap().0;
    let users = [
        user("app", "hunter2"),
        user("app", sha256_hash("x")),
        user("", sha256_hash("x")),
        user("two words", sha256_hash("x")),
        user("a", "sha256:hunter2"),
        user("b", format!("sha256:{}", "g".repeat(64))),
        user("c", hash.replace("$argon2id$", "$argon2i$")),
        user("d", cut),
        user("e", "$argon2id$hunter2!"),
        user("f", hash.replace("m=8", "m=99999999")),
        user("g", hash.replace("t=1", "t=101")),
        user("h", hash.replace("v=19", "v=7")),
        user("i", ""),
        user(&"n".repeat(65), hash.clone()),
        user("\u{1}", hash),
    ];
    let faults = Auth::compile(&users).unwrap_err();
    let places: Vec<_> = faults.iter().map(|fault| (fault.user, fault.setting)).collect();
    let hashes = [4, 5, 6, 7, 8, 9, 10, 11, 12].map(|at| (at, "password_hash"));
    let mut expected = vec![(0, "password_hash"), (1, "name"), (2, "name"), (3, "name")];
    expected.extend(hashes);
    expected.extend([(13, "name"), (14, "name")]);
    assert_eq!(places, expected);
    let shown = format!("{faults:?} {users:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("m=8"), "{shown}");
}

#[test]
fn nothing_secret_is_shown_for_debugging() {
    let users = [user("app", argon2id("secret", 1)), user("web", sha256_hash("secret"))];
    let auth = auth(&users);
    let verdict = auth.verify(b"app", b"secret");
    let shown = format!("{users:?} {auth:?} {verdict:?}");
    assert!(shown.contains("app"));
    for secret in ["secret", "argon2id", "sha256", "115, 101, 99", "2bb80d", "password_hash"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn users_are_read_strictly() {
    assert!(toml::from_str::<UserConfig>("name = \"app\"\npassword_hash = \"x\"").is_ok());
    assert!(toml::from_str::<UserConfig>("name = \"app\"\npassword = \"x\"").is_err());
}
