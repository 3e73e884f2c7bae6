//! What must never be called.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Answers with these addresses, one list per question, the last one repeatedly.
struct Answers(Vec<Vec<&'static str>>, AtomicUsize);

#[async_trait::async_trait]
impl Resolve for Answers {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if host == "missing.example" {
            return Err(io::Error::other("no such host"));
        }
        let asked = self.1.fetch_add(1, Ordering::SeqCst).min(self.0.len() - 1);
        Ok(self.0[asked].iter().map(|address| address.parse().unwrap()).collect())
    }
}

fn guard(answers: &[&[&'static str]], allowed: &[&str]) -> Guard {
    let answers = answers.iter().map(|answer| answer.to_vec()).collect();
    Guard {
        resolver: Arc::new(Answers(answers, AtomicUsize::new(0))),
        allowed: allowed.iter().map(|network| network.parse().unwrap()).collect(),
        timeout: Duration::from_secs(5),
        outgoing: None,
    }
}

/// Every one is refused by this check although its name, if it has one, leads to a public address.
const HOSTILE: &[(&str, &[&str])] = &[
    (
        "https",
        &[
            "http://a.example/",
            "ftp://a.example/",
            "gopher://a.example/",
            "file:///etc/passwd",
            "data:text/plain,x",
            "javascript:alert(1)",
            "httpss://a.example/",
            "ws://a.example/",
            "unix:/run/x.sock",
            "jar:https://a.example/!/",
        ],
    ),
    (
        "syntax",
        &[
            "",
            "https",
            "https:",
            "https://",
            "https:///a.example/",
            "https:a.example",
            "https:/a.example/",
            "//a.example/",
            "/a",
            "a.example",
            " https://a.example/",
            "https://a.example/ ",
            "https://a.example/a b",
            "https://a.example/\n",
            "https://a.example\t/",
            "https://a.exa\rmple/",
            "ht\ntps://a.example/",
            "https://a.example:65536/",
            "https://a.example:x/",
            "https://[fe80::1%25eth0]/",
            "https://[fe80::1%eth0]/",
            "https://[::1/",
            "https://::1/",
            "https://a.example%00.b.example/",
            "https://a.example%2fb/",
            "https://256.256.256.256/",
            "https://1.2.3.4.5/",
            "https://0x100000000/",
            "https://a.exa\u{0}mple/",
            "https://a.example/\u{2028}",
            "https://\u{ad}/",
            "https://xn--/",
            "https://a.example:-1/",
            "https://[v1.a]/",
        ],
    ),
    (
        "userinfo",
        &[
            "https://u@a.example/",
            "https://u:p@a.example/",
            "https://@a.example/",
            "https://:@a.example/",
            "https://a.example@127.0.0.1/",
            "https://127.0.0.1@a.example/",
            "https://a.example%40b@c.example/",
            "https://a.example:443@10.0.0.1/",
        ],
    ),
    (
        "query",
        &[
            "https://a.example/?",
            "https://a.example?x=1",
            "https://a.example/?batchTag=1",
            "https://a.example/a?b?c",
        ],
    ),
    (
        "fragment",
        &[
            "https://a.example/#",
            "https://a.example#x",
            "https://a.example/?a#b",
            "https://a.example/#@127.0.0.1/",
        ],
    ),
    (
        "backslash",
        &[
            r"https:\\a.example\",
            r"https://a.example\@127.0.0.1/",
            r"\\a.example\x",
            r"https://a.example/a\..\b",
        ],
    ),
    ("port", &["https://a.example:0/", "https://a.example:00/", "https://8.8.8.8:0/"]),
    (
        // Numbers for an address, whatever the address.
        "host",
        &[
            "https://2130706433/",
            "https://0x7f000001/",
            "https://0x7f.1/",
            "https://0x7f.0x0.0x0.0x1/",
            "https://017700000001/",
            "https://0177.0.0.1/",
            "https://127.1/",
            "https://127.0.1/",
            "https://0/",
            "https://0x0/",
            "https://00000/",
            "https://0251.0376.0251.0376/",
            "https://3232235777/",
            "https://134744072/",
            "https://0x08080808/",
            "https://10.1/",
            "https://127.0.0.1./",
            "https://\u{ff11}27.0.0.1/",
            "https://127\u{3002}0\u{3002}0\u{3002}1/",
            "https://\u{2460}27.0.0.1/",
            "https://%31%32%37.0.0.1/",
            "https://-a.example/",
            "https://a..example/",
            "https://a.example./",
            "https://localhost./",
        ],
    ),
    (
        "public-address",
        &[
            "https://127.0.0.1/",
            "https://127.0.0.1:8443/",
            "https://127.255.255.254/",
            "https://0.0.0.0/",
            "https://10.0.0.1/",
            "https://172.16.0.1/",
            "https://192.168.1.1/",
            "https://169.254.169.254/latest/meta-data",
            "https://100.64.0.1/",
            "https://198.18.0.1/",
            "https://192.0.2.1/",
            "https://198.51.100.7/",
            "https://203.0.113.9/",
            "https://224.0.0.1/",
            "https://240.0.0.1/",
            "https://255.255.255.255/",
            "https://192.88.99.1/",
            "https://[::]/",
            "https://[::1]/",
            "https://[0:0:0:0:0:0:0:1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:7f00:1]/",
            "https://[::127.0.0.1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://[::ffff:0:127.0.0.1]/",
            "https://[64:ff9b::127.0.0.1]/",
            "https://[64:ff9b::169.254.169.254]/",
            "https://[64:ff9b:1::10.0.0.1]/",
            "https://[2002:7f00:1::]/",
            "https://[2002:a00:1::1]/",
            "https://[2001:0:7f00:1::]/",
            "https://[fc00::1]/",
            "https://[fd00::1]/",
            "https://[fe80::1]/",
            "https://[ff02::1]/",
            "https://[2001:db8::1]/",
            "https://[100::1]/",
            "https://[3fff::1]/",
        ],
    ),
    ("resolves", &["https://missing.example/", "https://MISSING.example:8443/x"]),
];

#[tokio::test]
async fn the_corpus_of_hostile_urls_is_refused_each_by_its_check() {
    let guard = guard(&[&["8.8.8.8"]], &[]);
    let mut refused = 0;
    for (check, urls) in HOSTILE {
        for url in *urls {
            let found =
                guard.check(url).await.map(|_| "nothing").unwrap_or_else(|refused| refused.check.name());
            assert_eq!(found, *check, "{url:?}");
            refused += 1;
        }
    }
    assert!(refused >= 100, "the corpus has shrunk to {refused}");
}

#[tokio::test]
async fn a_name_with_one_address_inside_is_refused_whatever_the_others() {
    for inside in [
        "127.0.0.1",
        "10.0.0.7",
        "169.254.169.254",
        "::1",
        "fe80::1",
        "::ffff:192.168.0.1",
        "fd00::1",
        "64:ff9b::a00:1",
        "0.0.0.0",
        "2002:a00:1::",
    ] {
        for answer in [&["8.8.8.8", inside][..], &[inside, "8.8.8.8"], &["2606:4700::1", "8.8.8.8", inside]] {
            let refused = guard(&[answer], &[]).check("https://a.example/x").await.unwrap_err();
            assert_eq!(refused.check, Check::PublicAddress, "{answer:?}");
        }
    }
    // The shapes that a name can hide in lead to the same question.
    for url in [
        "https://LOCALHOST/",
        "https://\u{24db}ocalhost/",
        "https://b\u{fc}cher.example/",
        "https://a.example:1/",
    ] {
        assert_eq!(
            guard(&[&["127.0.0.1"]], &[]).check(url).await.unwrap_err().check.name(),
            "public-address",
            "{url}"
        );
    }
    let none = guard(&[&[]], &[]).check("https://a.example/").await.unwrap_err();
    assert_eq!(none.check, Check::Resolves);
}

#[tokio::test]
async fn the_connection_goes_to_what_was_checked_and_the_next_check_looks_again() {
    let guard = guard(&[&["8.8.8.8", "2606:4700::1"], &["127.0.0.1"]], &[]);
    let target = guard.check("https://rebinds.example:444/x").await.unwrap();
    let expected: Vec<SocketAddr> =
        vec!["8.8.8.8:444".parse().unwrap(), "[2606:4700::1]:444".parse().unwrap()];
    assert_eq!(target.addresses, expected);
    let refused = guard.check("https://rebinds.example:444/x").await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the URL fails the check \"public-address\": rebinds.example leads to 127.0.0.1"
    );
}

#[tokio::test]
async fn a_network_that_is_allowed_opens_itself_alone() {
    let guard = guard(&[&["10.1.0.7"]], &["10.1.0.0/16", "127.0.0.0/8", "fd00:1::/32"]);
    for url in [
        "https://a.example/",
        "https://10.1.255.255/",
        "https://127.0.0.1:1/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fd00:1::7]/",
        "https://1.1.1.1/",
        "https://[2606:4700::1]/",
        "https://a.example:8443/a/b%20c/d;e=f",
    ] {
        guard.check(url).await.unwrap();
    }
    for url in ["https://10.2.0.1/", "https://[::1]/", "https://[fd00:2::7]/", "https://192.168.0.1/"] {
        assert_eq!(guard.check(url).await.unwrap_err().check.name(), "public-address", "{url}");
    }
}

#[tokio::test]
async fn a_url_has_a_limit() {
    let url = |length: usize| format!("https://a.example/{}", "x".repeat(length - 18));
    let guard = guard(&[&["8.8.8.8"]], &[]);
    guard.check(&url(2048)).await.unwrap();
    assert_eq!(guard.check(&url(2049)).await.unwrap_err().check.name(), "length");
}
