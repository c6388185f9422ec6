//! The committed manifests are what the code generates. `PLIMSOLL_REGENERATE=1 cargo test -p plimsoll-crds` rewrites them.

use std::path::PathBuf;

use plimsoll_crds::manifests;

#[test]
fn committed_yaml_is_current() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("yaml");
    let mut files = manifests::yaml_files().unwrap();
    files.push(("presets/acceleratorclasses.yaml".to_owned(), manifests::accelerators_yaml().unwrap()));
    for (name, yaml) in files {
        let path = folder.join(&name);
        if std::env::var_os("PLIMSOLL_REGENERATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &yaml).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == yaml,
            "crds/yaml/{name} is out of date; run: PLIMSOLL_REGENERATE=1 cargo test -p plimsoll-crds --test drift"
        );
    }
}

#[test]
fn yaml_reads_back_as_the_same_objects() {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    let text = plimsoll_crds::all_yaml().unwrap();
    let read: Vec<CustomResourceDefinition> = serde_saphyr::from_multiple(&text).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(plimsoll_crds::all()).unwrap());
}

#[test]
fn accelerator_manifests_are_all_valid() {
    let text = manifests::accelerators_yaml().unwrap();
    let read: Vec<plimsoll_crds::AcceleratorClass> = serde_saphyr::from_multiple(&text).unwrap();
    assert_eq!(read.len(), plimsoll_fleet::presets::accelerators().len());
    for (class, preset) in read.iter().zip(plimsoll_fleet::presets::accelerators()) {
        assert_eq!(class.to_fleet().unwrap(), preset);
    }
}
