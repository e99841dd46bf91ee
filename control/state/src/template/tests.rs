//! The expected expansions were observed on Swarm 20.10, or follow from Go's documentation.

use super::*;

fn context() -> TemplateContext {
    TemplateContext {
        service_labels: Labels::from([
            ("a".to_owned(), "b".to_owned()),
            ("tier".to_owned(), "front".to_owned()),
        ]),
        architecture: "x86_64".to_owned(),
        os: "linux".to_owned(),
        node_hostname: "alpha".to_owned(),
        task_slot: "3".to_owned(),
        ..TemplateContext::for_checks("web", &Labels::new())
    }
}

#[track_caller]
fn check(template: &str, expected: &str) {
    assert_eq!(
        expand(template, &context()).map_err(|error| error.to_string()).as_deref(),
        Ok(expected),
        "{template}"
    );
}

#[track_caller]
fn refused(template: &str, expected: &str) {
    let error = expand(template, &context()).expect_err(template).to_string();
    assert!(error.contains(expected), "{template}: expected {expected:?} in {error:?}");
}

#[test]
fn fields_and_labels_are_filled_in() {
    check("{{.Service.Name}}-{{ .Task.Slot }}", "web-3");
    check("no template } }} {", "no template } }} {");
    check(r#"{{index .Service.Labels "tier"}}"#, "front");
    check(r#"{{index .Service.Labels "absent"}}"#, "");
    check("{{.Service.Labels.tier}}", "front");
    refused("{{.Service.Labels.absent}}", "can't evaluate field absent");
    refused("{{.Nope}}", "can't evaluate field Nope: known are .Service.ID");
    refused("{{.Task.Nope}}", "can't evaluate field Nope");
    refused("{{", "expansion:1");
    refused("{{.Task.ID", "expansion:1");
}

#[test]
fn the_language_is_gos() {
    check(r#"{{"{{"}}.Host{{"}}"}}"#, "{{.Host}}");
    check("{{if eq .Task.Slot \"3\"}}third{{else}}other{{end}}", "third");
    check("{{range $k, $v := .Service.Labels}}{{$k}}={{$v}};{{end}}", "a=b;tier=front;");
    check(r#"{{printf "%s-%5s" .Service.Name .Task.Slot}}"#, "web-    3");
    check(r#"{{join "," .Service.Name "x"}}"#, "web,x");
    check("a {{- /* nothing */ -}} b", "ab");
    check("{{$n := .Node}}{{$n.Hostname}}", "alpha");
    refused("{{nosuch 1}}", r#"function "nosuch" not defined"#);
}

#[test]
fn structs_and_maps_are_printed_as_go_prints_them() {
    check("{{.Service.Labels}}", "map[a:b tier:front]");
    check("{{.Node.Platform}}", "{x86_64 linux}");
    check("{{.Node}}", "{nodeid alpha {x86_64 linux}}");
    check("{{$.Node.Platform}}", "{x86_64 linux}");
    check("{{.Service}}", "{serviceid web map[a:b tier:front]}");
    check("{{with .Node}}{{.Platform}} {{.Platform.OS}}{{end}}", "{x86_64 linux} linux");
    check(r#"{{.Node.Platform | printf "%v!"}}"#, "{x86_64 linux}!");
    check("{{.}}", "{{serviceid web map[a:b tier:front]} {nodeid alpha {x86_64 linux}} {taskid taskname 3}}");
    refused("{{range .Node}}x{{end}}", "range can't iterate over .Node");
    refused(r#"{{index .Node "ID"}}"#, "index: takes a map or a text");
}

#[test]
fn an_expansion_is_bounded() {
    refused("{{range 9999999999}}x{{end}}", "budget");
    refused(r#"{{define "a"}}{{template "a"}}{{end}}{{template "a"}}"#, "recursion limit");
    let doubled = r"{{$a := .Service.Name}}".to_owned()
        + &r#"{{$a = printf "%s%s" $a $a}}"#.repeat(12)
        + &"{{$a}}".repeat(200);
    refused(&doubled, "longer than");
}

fn functions() -> PayloadFunctions {
    let known = |kind: &'static str| -> PayloadFunction {
        Arc::new(move |name| {
            if name == "missing" {
                Err(format!("{kind} target missing not found"))
            } else {
                Ok(format!("{kind}-{name}"))
            }
        })
    };
    PayloadFunctions { secret: known("secret"), config: known("config"), env: known("env") }
}

#[test]
fn payloads_read_secrets_configs_and_variables() {
    let template = "S={{secret \"a\"}}\nC={{config \"b\"}}\nE={{env \"X\"}} {{.Service.Name}}\n";
    let expanded = expand_payload(template, &context(), &functions()).expect("an expansion");
    assert_eq!(expanded, "S=secret-a\nC=config-b\nE=env-X web\n");
    let error = expand_payload("{{secret \"missing\"}}", &context(), &functions()).expect_err("a refusal");
    assert!(error.to_string().contains("secret target missing not found"), "{error}");
    let error = expand("{{secret \"a\"}}", &context()).expect_err("specs have no secrets");
    assert!(error.to_string().contains(r#"function "secret" not defined"#), "{error}");
}

#[test]
fn a_payload_is_checked_before_a_task_needs_it() {
    assert!(check_payload("{{secret \"a\" | html}} {{.Anything}}").is_ok());
    for (template, expected) in
        [("{{secret \"a\"", "expansion:1"), ("{{if true}}{{sekret 1}}{{end}}", r#""sekret" not defined"#)]
    {
        let error = check_payload(template).expect_err(template).to_string();
        assert!(error.contains(expected), "{template}: {error}");
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_template_panics_or_prints_the_marker(text in "(\\{\\{|\\}\\}|[ .$|()\"a-z]|Node|Platform|Service|range |end|with |if |index ){0,12}") {
            if let Ok(expanded) = expand(&text, &context()) {
                prop_assert!(!expanded.contains('\u{1}'), "{text:?} gave {expanded:?}");
            }
        }
    }
}
