//! What a folder may hold, and what is said of one that can't be used.

use plimsoll_proto::tls::{Credentials as _, Mutual, Names, Public, TlsError};
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};

use crate::certs::{AGENT, Authority, write};

/// What is said of a folder with this authority, certificate and key.
fn said(ca: &str, cert: &str, key: &str) -> (TlsError, String) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), ca, cert, key);
    let error = Mutual::open(dir.path(), &Names::default(), false).unwrap_err();
    let text = error.to_string();
    (error, text)
}

#[test]
fn a_good_folder_says_when_it_ends() {
    let ours = Authority::new("ours");
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = ours.issue(AGENT, (2020, 2099));
    write(dir.path(), &ours.pem(), &cert, &key);
    let mutual = Mutual::open(dir.path(), &Names::default(), false).unwrap();
    assert_eq!(mutual.credentials().current().ends_at(), "2099-01-01T00:00:00Z".parse().unwrap());
    let public = Public::open(dir.path()).unwrap();
    assert_eq!(public.credentials().current().ends_at(), "2099-01-01T00:00:00Z".parse().unwrap());
}

#[test]
fn every_error_names_the_file_what_is_wrong_and_what_to_do() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let ca = ours.pem();
    let (cert, key) = ours.issue(AGENT, (2020, 2099));

    let dir = tempfile::tempdir().unwrap();
    let error = Mutual::open(dir.path(), &Names::default(), false).unwrap_err();
    assert!(matches!(&error, TlsError::Read { file, .. } if file.ends_with("ca.crt")), "{error}");
    assert!(error.to_string().contains("the folder needs ca.crt, tls.crt and tls.key"), "{error}");

    for (ca, cert, key, file) in [
        ("no PEM", cert.as_str(), key.as_str(), "ca.crt"),
        (&ca, "", &key, "tls.crt"),
        (&ca, &key, &key, "tls.crt"),
        (&ca, "-----BEGIN CERTIFICATE-----\nAAAA", &key, "tls.crt"),
        (&ca, &cert, &cert, "tls.key"),
        (&ca, &cert, "-----BEGIN PRIVATE KEY-----\n%%%%\n-----END PRIVATE KEY-----\n", "tls.key"),
    ] {
        let (error, text) = said(ca, cert, key);
        assert!(matches!(&error, TlsError::NotPem { .. }), "{error:?}");
        assert!(text.contains(file) && text.contains("BEGIN and END lines"), "{text}");
    }
    let (error, text) = said("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &cert, &key);
    assert!(matches!(error, TlsError::Unusable { .. }) && text.contains("ca.crt"), "{text}");

    let (error, text) = said(&ca, &cert, &ours.issue(AGENT, (2020, 2099)).1);
    assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error:?}");
    assert!(text.contains("tls.key is not the key of") && text.contains("tls.crt"), "{text}");

    let (old, its_key) = ours.issue(AGENT, (2020, 2021));
    let (error, text) = said(&ca, &old, &its_key);
    assert!(matches!(error, TlsError::Expired { .. }), "{error:?}");
    assert!(text.contains("2021-01-01") && text.contains("renewed"), "{text}");
    let (early, its_key) = ours.issue(AGENT, (2098, 2099));
    let (error, text) = said(&ca, &early, &its_key);
    assert!(matches!(error, TlsError::NotYetValid { .. }) && text.contains("2098-01-01"), "{text}");

    let (error, text) = said(&foreign.pem(), &cert, &key);
    assert!(matches!(error, TlsError::OtherAuthority { .. }) && text.contains("ca.crt"), "{text}");

    for uses in [[ServerAuth], [ClientAuth]] {
        let (half, its_key) = ours.issue_for(AGENT, (2020, 2099), &uses);
        let (error, text) = said(&ca, &half, &its_key);
        assert!(matches!(error, TlsError::Unusable { .. }), "{error:?}");
        assert!(text.contains("server and client authentication"), "{text}");
    }

    let name = Names::new(&["not a name".to_owned()]).unwrap_err();
    assert!(matches!(&name, TlsError::Name { name } if name == "not a name"), "{name}");
}

#[test]
fn a_public_certificate_needs_no_authority_but_must_be_valid() {
    let ours = Authority::new("ours");
    let dir = tempfile::tempdir().unwrap();
    for (years, good) in [((2020, 2099), true), ((2020, 2021), false), ((2098, 2099), false)] {
        // A server's, as public authorities issue them.
        let (cert, key) = ours.issue_for("chat.example", years, &[ServerAuth]);
        write(dir.path(), "", &cert, &key);
        std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
        match Public::open(dir.path()) {
            Ok(_) => assert!(good, "{years:?}"),
            Err(error) => {
                assert!(!good && error.to_string().contains("tls.crt"), "{years:?}: {error}");
            }
        }
    }
    // Issued by itself, as for a try.
    let own = rcgen::generate_simple_self_signed(["chat.example".to_owned()]).unwrap();
    write(dir.path(), "", &own.cert.pem(), &own.signing_key.serialize_pem());
    Public::open(dir.path()).unwrap();
}

#[test]
fn a_change_that_cannot_be_used_is_told_once_and_changes_nothing() {
    let ours = Authority::new("ours");
    let dir = ours.folder(AGENT);
    let folder = Mutual::open(dir.path(), &Names::default(), false).unwrap().credentials().clone();
    let first = folder.current();
    assert!(!folder.reload().unwrap(), "nothing has changed");

    let (cert, key) = ours.issue(AGENT, (2020, 2098));
    std::fs::write(dir.path().join("tls.crt"), &cert).unwrap();
    assert!(matches!(folder.reload(), Err(TlsError::KeyMismatch { .. })));
    assert!(matches!(folder.reload(), Ok(false)), "told once");
    assert_eq!(folder.current().ends_at(), first.ends_at());
    std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
    assert!(matches!(folder.reload(), Err(TlsError::Read { .. })));
    assert!(matches!(folder.reload(), Ok(false)), "told once");

    write(dir.path(), &ours.pem(), &cert, &key);
    assert!(folder.reload().unwrap());
    assert_eq!(folder.current().ends_at(), "2098-01-01T00:00:00Z".parse().unwrap());

    // As the kubelet changes a Secret: another folder behind a link, at one stroke.
    let volume = tempfile::tempdir().unwrap();
    let (one, two) = (ours.folder(AGENT), Authority::new("next").folder(AGENT));
    std::os::unix::fs::symlink(one.path(), volume.path().join("..data")).unwrap();
    for file in ["ca.crt", "tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{file}"), volume.path().join(file)).unwrap();
    }
    let folder = Mutual::open(volume.path(), &Names::default(), false).unwrap().credentials().clone();
    std::os::unix::fs::symlink(two.path(), volume.path().join("..data_tmp")).unwrap();
    std::fs::rename(volume.path().join("..data_tmp"), volume.path().join("..data")).unwrap();
    assert!(folder.reload().unwrap());
}
