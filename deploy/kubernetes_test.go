package deploy

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/mimiktech/cluster"
)

// newObject returns an empty object of the type that a manifest names.
func newObject(t *testing.T, apiVersion, kind string) any {
	t.Helper()
	switch apiVersion + " " + kind {
	case "v1 Namespace":
		return new(corev1.Namespace)
	case "v1 Secret":
		return new(corev1.Secret)
	case "v1 Service":
		return new(corev1.Service)
	case "apps/v1 Deployment":
		return new(appsv1.Deployment)
	case "policy/v1 PodDisruptionBudget":
		return new(policyv1.PodDisruptionBudget)
	case "networking.k8s.io/v1 NetworkPolicy":
		return new(networkingv1.NetworkPolicy)
	}
	t.Fatalf("unknown object %s %s", apiVersion, kind)
	return nil
}

// decode decodes the objects of a file as strictly as the API server: no unknown field, no field
// twice, no value of a wrong type.
func decode(t *testing.T, text string) (objects []any, err error) {
	t.Helper()
	for document := range strings.SplitSeq(text, "\n---\n") {
		var header struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal([]byte(document), &header); err != nil {
			return nil, err
		}
		data, err := yaml.YAMLToJSONStrict([]byte(document))
		if err != nil {
			return nil, err
		}
		object := newObject(t, header.APIVersion, header.Kind)
		strict, err := json.UnmarshalStrict(data, object)
		if err := errors.Join(append(strict, err)...); err != nil {
			return nil, err
		}
		objects = append(objects, object)
	}
	return objects, nil
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestManifestsAreValid(t *testing.T) {
	files, err := filepath.Glob("kubernetes/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, name := range files {
		if _, err := decode(t, readFile(t, name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := readFile(t, "kubernetes/node.yaml")
	for what, change := range map[string][2]string{
		"unknown field": {"readinessProbe:", "readynessProbe:"}, "wrong type": {"replicas: 3", "replicas: three"},
		"field twice": {"  replicas: 3", "  replicas: 3\n  replicas: 3"}, "wrong case": {"  replicas: 3", "  Replicas: 3"}, "text as a number": {`value: "8080"`, "value: 8080"},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if _, err := decode(t, bad); bad == good || err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}

// object returns the only object of a type.
func object[T any](t *testing.T, objects []any) (found T) {
	t.Helper()
	n := 0
	for _, o := range objects {
		if o, ok := o.(T); ok {
			found, n = o, n+1
		}
	}
	if n != 1 {
		t.Fatalf("%d objects of type %T", n, found)
	}
	return found
}

// The environment of the node's manifest is a valid configuration, and its objects fit together.
func TestNode(t *testing.T) {
	objects, err := decode(t, readFile(t, "kubernetes/node.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	deployment, secret := object[*appsv1.Deployment](t, objects), object[*corev1.Secret](t, objects)
	pod := deployment.Spec.Template.Spec
	container := pod.Containers[0]

	dir := t.TempDir()
	for name, value := range secret.StringData {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mount := container.VolumeMounts[0]
	if mount.Name != pod.Volumes[0].Name || pod.Volumes[0].Secret.SecretName != secret.Name || mount.SubPath != "" {
		t.Errorf("mount %+v of volume %+v", mount, pod.Volumes[0])
	}
	env := map[string]string{}
	fields := map[string]string{"metadata.name": "shop-5d5f8-x2x4z", "status.podIP": "fd00::7"}
	for _, v := range container.Env {
		env[v.Name] = strings.Replace(v.Value, mount.MountPath, dir, 1)
		if v.ValueFrom != nil {
			env[v.Name] = fields[v.ValueFrom.FieldRef.FieldPath]
		}
	}
	used := map[string]bool{}
	cfg, err := cluster.ConfigFrom(func(name string) (string, bool) {
		value, ok := env[name]
		used[name] = used[name] || ok
		return value, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(used, func(_ string, ok bool) bool { return !ok })
	if len(used) != len(env) {
		t.Errorf("%d variables are set, %d are used: %v", len(env), len(used), used)
	}
	c, err := cluster.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.Config(); got.ClusterBaseURL != "http://[fd00::7]:8080/shop/v1" || got.ID != fields["metadata.name"] || !got.Management {
		t.Errorf("the node is %s at %s", got.ID, got.ClusterBaseURL)
	}
	if int(container.Ports[0].ContainerPort) != cfg.Port || container.ReadinessProbe.HTTPGet.Path != "/ready" {
		t.Errorf("port %d, readiness %+v", container.Ports[0].ContainerPort, container.ReadinessProbe)
	}
	if grace := *pod.TerminationGracePeriodSeconds; grace < 26 {
		t.Errorf("%d s to leave, the node needs 25", grace)
	}
	checkLabels(t, objects)
}

// checkLabels checks that all objects select the pods, and the registry's policy its pods.
func checkLabels(t *testing.T, objects []any) {
	t.Helper()
	labels := object[*appsv1.Deployment](t, objects).Spec.Template.Labels
	policy := object[*networkingv1.NetworkPolicy](t, objects).Spec
	for what, got := range map[string]map[string]string{
		"deployment": object[*appsv1.Deployment](t, objects).Spec.Selector.MatchLabels,
		"service":    object[*corev1.Service](t, objects).Spec.Selector,
		"budget":     object[*policyv1.PodDisruptionBudget](t, objects).Spec.Selector.MatchLabels,
		"policy":     policy.PodSelector.MatchLabels,
		"ingress":    policy.Ingress[0].From[0].PodSelector.MatchLabels,
		"egress":     policy.Egress[0].To[0].PodSelector.MatchLabels,
	} {
		if diff := cmp.Diff(labels, got); diff != "" {
			t.Errorf("the %s selects other pods (-want +got):\n%s", what, diff)
		}
	}
	registry, err := decode(t, readFile(t, "kubernetes/mit.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	mit := object[*appsv1.Deployment](t, registry).Spec.Template
	to, port := policy.Egress[1].To[0], policy.Egress[1].Ports[0].Port.StrVal
	if diff := cmp.Diff(mit.Labels, to.PodSelector.MatchLabels); diff != "" || mit.Spec.Containers[0].Ports[0].Name != port {
		t.Errorf("the policy lets nodes call port %s of (-want +got):\n%s", port, diff)
	}
}
