//! Keys and certificates of a bed: one authority, the API server's certificate, a client certificate per identity, the
//! key that signs ServiceAccount tokens. Made anew for every bed.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// Whom a kubeconfig makes its bearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the kubeconfig file, without its ending.
    pub file: &'static str,
    user: &'static str,
    group: Option<&'static str>,
}

/// May do everything.
pub const ADMIN: Identity = Identity { file: "admin", user: "admin", group: Some("system:masters") };
/// As kube-controller-manager runs in a real cluster.
pub const CONTROLLER_MANAGER: Identity =
    Identity { file: "kube-controller-manager", user: "system:kube-controller-manager", group: None };
/// As kube-proxy runs in a real cluster: the built-in ClusterRole `system:node-proxier`, nothing else.
pub const PROXY: Identity = Identity { file: "kube-proxy", user: "system:kube-proxy", group: None };

/// May do nothing but what everybody may.
pub const NOBODY: Identity = Identity { file: "nobody", user: "nobody", group: None };

/// The files of a bed's keys and certificates.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes all of them, for an API server at `server` (first) that is also known as `names`.
    pub fn make(dir: &Path, server: IpAddr, names: &[IpAddr]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("fairlead-bed", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        let pki = Self { dir: dir.to_owned() };
        fs::write(pki.path("ca.crt"), &authority)?;
        let tokens = KeyPair::generate()?;
        fs::write(pki.path("service-accounts.key"), tokens.serialize_pem())?;
        fs::write(pki.path("service-accounts.pub"), tokens.public_key_pem())?;

        let mut sans: Vec<SanType> =
            names.iter().chain([&server]).map(|ip| SanType::IpAddress(*ip)).collect();
        for name in ["kubernetes", "kubernetes.default", "kubernetes.default.svc"] {
            sans.push(SanType::DnsName(name.try_into()?));
        }
        let (certificate, key) = signed(&issuer, named("kube-apiserver", None), sans)?;
        fs::write(pki.path("apiserver.crt"), certificate)?;
        fs::write(pki.path("apiserver.key"), key)?;

        let url = format!("https://{server}:6443");
        for identity in [ADMIN, CONTROLLER_MANAGER, PROXY, NOBODY] {
            let (certificate, key) = signed(&issuer, named(identity.user, identity.group), Vec::new())?;
            let config = kubeconfig(&url, &authority, &certificate, &key);
            fs::write(pki.kubeconfig(identity), serde_json::to_string_pretty(&config)?)?;
        }
        Ok(pki)
    }

    /// A file by name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// An identity's kubeconfig.
    pub fn kubeconfig(&self, identity: Identity) -> PathBuf {
        self.path(&format!("{}.kubeconfig", identity.file))
    }
}

fn named(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, user);
    name
}

fn signed(
    issuer: &Issuer<'_, KeyPair>,
    name: DistinguishedName,
    sans: Vec<SanType>,
) -> Result<(String, String)> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.subject_alt_names = sans;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer).context("signing a certificate")?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// JSON is YAML, so every reader of kubeconfigs takes it.
fn kubeconfig(url: &str, authority: &str, certificate: &str, key: &str) -> Value {
    let base64 = |text: &str| data_encoding::BASE64.encode(text.as_bytes());
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bed", "cluster": {"server": url, "certificate-authority-data": base64(authority)}}],
        "users": [{"name": "bed", "user": {"client-certificate-data": base64(certificate), "client-key-data": base64(key)}}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "bed"}}],
        "current-context": "bed",
    })
}
