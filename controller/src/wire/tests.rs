//! Encoded objects against the bytes that Kubernetes' own serializer makes of the same JSON (`fixtures/*.pb`, written by
//! `k8s.io/apimachinery/pkg/runtime/serializer/protobuf`). Every field that we know is set in them.
//!
//! The bytes themselves differ: Go also writes empty fields.

use prost::Message;
use serde::de::DeserializeOwned;

use super::{Body, MAGIC, messages};

fn parts<M: Message + Default>(body: &[u8]) -> (messages::TypeMeta, M) {
    let unknown = messages::Unknown::decode(body.strip_prefix(MAGIC).expect("magic")).expect("envelope");
    (unknown.type_meta.expect("type"), M::decode(&*unknown.raw).expect("object"))
}

fn assert_same<O: Body + DeserializeOwned, M: Message + Default + PartialEq + std::fmt::Debug>(
    json: &str,
    go: &[u8],
) {
    let object: O = serde_json::from_str(json).expect("an object");
    assert_eq!(parts::<M>(&object.encode()), parts::<M>(go));
}

#[test]
fn slice_means_what_kubernetes_writes_for_the_same_json() {
    assert_same::<fairlead_objects::EndpointSlice, messages::EndpointSlice>(
        include_str!("fixtures/slice.json"),
        include_bytes!("fixtures/slice.pb"),
    );
}

#[test]
fn endpoints_mean_what_kubernetes_writes_for_the_same_json() {
    assert_same::<fairlead_objects::Endpoints, messages::Endpoints>(
        include_str!("fixtures/endpoints.json"),
        include_bytes!("fixtures/endpoints.pb"),
    );
}
