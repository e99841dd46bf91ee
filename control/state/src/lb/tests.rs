//! Tests of labels and the settings that they are parsed to.

use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The settings that one label is parsed to, or the error.
fn read(key: &str, value: &str) -> Result<LbSettings, String> {
    LbSettings::from_labels(&labels(&[(key, value)])).map_err(|error| error.to_string())
}

fn weight(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).unwrap()
}

#[test]
fn every_label_is_parsed() {
    let all = labels(&[
        ("a", "b"),
        (POLICY_LABEL, "source-hash"),
        (MODE_LABEL, "dsr"),
        (PREFER_LOCAL_LABEL, "true"),
        (SLOW_START_LABEL, "1m30s"),
        (ALLOW_LABEL, "10.0.0.0/8, 192.168.1.7,fd00::/8,fd00::/8,2001:db8::1"),
        (IDLE_TIMEOUT_LABEL, "168h"),
        (DRAIN_TIMEOUT_LABEL, "5m"),
        (LOAD_HTTP_LABEL, "8080/load?now"),
        (WEIGHT_LABEL, "1000"),
        ("mesh.lb.weight.12", "3"),
    ]);
    let nets = ["10.0.0.0/8", "192.168.1.7/32", "fd00::/8", "2001:db8::1/128"];
    let expected = LbSettings {
        policy: Policy::SourceHash,
        mode: Mode::Dsr,
        prefer_local: true,
        slow_start_s: 90,
        allow: nets.map(|net| net.parse().unwrap()).to_vec(),
        idle_timeout_s: NonZeroU32::new(604_800),
        drain_timeout_s: Some(300),
        load_http: Some(LoadHttp { port: 8080, path: "/load?now".to_owned() }),
        weight: Some(weight(1000)),
        slot_weights: BTreeMap::from([(12, weight(3))]),
    };
    assert_eq!(LbSettings::from_labels(&all), Ok(expected.clone()));
    let json = serde_json::to_string(&expected).unwrap();
    assert_eq!(serde_json::from_str::<LbSettings>(&json).unwrap(), expected, "through {json}");
    assert_eq!(LbSettings::from_labels(&labels(&[("a", "b")])), Ok(LbSettings::default()));
}

#[test]
fn policies_and_modes_have_names() {
    for policy in Policy::ALL {
        assert_eq!(read(POLICY_LABEL, policy.as_str()).map(|settings| settings.policy), Ok(*policy));
    }
    for mode in Mode::ALL {
        assert_eq!(read(MODE_LABEL, mode.as_str()).map(|settings| settings.mode), Ok(*mode));
    }
}

#[test]
fn a_bad_value_is_refused_with_the_allowed_ones() {
    let seconds = "a duration of whole seconds from";
    for (key, value, named) in [
        (POLICY_LABEL, "fastest", "one of round-robin, random, least-connections, least-load, source-hash"),
        (MODE_LABEL, "nat", "one of tunnel, dsr, proxy"),
        (PREFER_LOCAL_LABEL, "yes", "one of true, false"),
        (SLOW_START_LABEL, "61m", seconds),
        (SLOW_START_LABEL, "1.5s", seconds),
        (SLOW_START_LABEL, "30", seconds),
        (IDLE_TIMEOUT_LABEL, "0s", seconds),
        (IDLE_TIMEOUT_LABEL, "169h", seconds),
        (ALLOW_LABEL, "", "networks (10.0.0.0/8, fd00::/8) or addresses"),
        (ALLOW_LABEL, "10.0.0.0/8,,1.1.1.1", "networks (10.0.0.0/8, fd00::/8) or addresses"),
        (ALLOW_LABEL, "10.0.0.0/33", "networks (10.0.0.0/8, fd00::/8) or addresses"),
        (LOAD_HTTP_LABEL, "8080", "PORT/PATH"),
        (LOAD_HTTP_LABEL, "0/load", "PORT/PATH"),
        (LOAD_HTTP_LABEL, "80/a b", "PORT/PATH"),
        (WEIGHT_LABEL, "0", "a whole number from 1 to 1000"),
        (WEIGHT_LABEL, "1001", "a whole number from 1 to 1000"),
        (WEIGHT_LABEL, "-1", "a whole number from 1 to 1000"),
        ("mesh.lb.weight.3", "x", "a whole number from 1 to 1000"),
    ] {
        let error = read(key, value).unwrap_err();
        let expected = format!("invalid label {key}={value}: must be {named}");
        assert!(error.starts_with(&expected), "expected {expected:?}, saw {error:?}");
    }
}

#[test]
fn host_bits_are_refused_with_the_network() {
    for (given, network) in [("10.1.2.3/8", "10.0.0.0/8"), ("fd00::1/64", "fd00::/64")] {
        let error = read(ALLOW_LABEL, given).unwrap_err();
        let expected =
            format!("invalid label mesh.lb.allow: {given} has host bits set: the network is {network}");
        assert_eq!(error, expected);
    }
}

#[test]
fn an_unknown_label_is_refused_with_the_known_ones() {
    for key in ["mesh.lb.polcy", "mesh.lb.", "mesh.lb.weight.", "mesh.lb.weight.0", "mesh.lb.weight.01"] {
        let error = read(key, "1").unwrap_err();
        assert!(error.starts_with(&format!("unknown label {key}: ")), "for {key}: {error}");
        for known in [POLICY_LABEL, MODE_LABEL, ALLOW_LABEL, "mesh.lb.weight.SLOT"] {
            assert!(error.contains(known), "expected {known} in {error}");
        }
    }
}

#[test]
fn a_node_has_a_weight_only() {
    assert_eq!(node_weight(&labels(&[("zone", "a")])), Ok(weight(1)));
    assert_eq!(node_weight(&labels(&[(WEIGHT_LABEL, "7")])), Ok(weight(7)));
    for key in [POLICY_LABEL, "mesh.lb.weight.1"] {
        let error = node_weight(&labels(&[(key, "1")])).unwrap_err().to_string();
        assert!(error.ends_with("a node has mesh.lb.weight only"), "for {key}: {error}");
    }
    assert!(node_weight(&labels(&[(WEIGHT_LABEL, "0")])).is_err(), "a node of weight 0");
}

#[test]
fn a_tasks_own_weight_comes_before_its_services_and_the_nodes_multiplies() {
    let mut settings = read("mesh.lb.weight.2", "30").unwrap();
    let seen = |settings: &LbSettings, slot: u64, node: u32| {
        settings.weight_of(&Slot::Number(slot), weight(node)).get()
    };
    assert_eq!((seen(&settings, 1, 1), seen(&settings, 2, 1), seen(&settings, 2, 4)), (1, 30, 120));
    settings.weight = Some(weight(5));
    assert_eq!((seen(&settings, 1, 2), seen(&settings, 2, 1)), (10, 30));
    assert_eq!(settings.weight_of(&Slot::Node("n".into()), weight(3)), weight(15));
    settings.weight = Some(weight(1000));
    assert_eq!(seen(&settings, 1, 1000), EFFECTIVE_WEIGHT_MAX);
}
