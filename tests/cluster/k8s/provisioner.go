package main

import (
	"context"
	"log"
	"os"
	"path/filepath"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const provisionerName = "carpool-cluster/local"

// provision gives every claim of this provisioner's storage classes a folder on
// the node, and removes the folder with the volume. It polls: one node, few claims.
func provision(args []string) {
	if len(args) != 2 {
		log.Fatal("usage: local-provisioner KUBECONFIG FOLDER")
	}
	config, err := clientcmd.BuildConfigFromFlags("", args[0])
	if err != nil {
		log.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(config)
	for ; ; time.Sleep(500 * time.Millisecond) {
		if err := provisionOnce(context.Background(), client, args[1]); err != nil {
			log.Print(err)
		}
	}
}

func provisionOnce(ctx context.Context, client kubernetes.Interface, folder string) error {
	volumes := client.CoreV1().PersistentVolumes()
	claims, err := client.CoreV1().PersistentVolumeClaims("").List(ctx, meta.ListOptions{})
	if err != nil {
		return err
	}
	for _, claim := range claims.Items {
		// The volume controller sets this annotation once the claim is ready to be provisioned.
		if claim.Status.Phase != core.ClaimPending || claim.DeletionTimestamp != nil ||
			claim.Annotations["volume.kubernetes.io/storage-provisioner"] != provisionerName {
			continue
		}
		name := "pvc-" + string(claim.UID)
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(path, 0o777); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o777); err != nil {
			return err
		}
		volume := &core.PersistentVolume{
			ObjectMeta: meta.ObjectMeta{
				Name:        name,
				Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": provisionerName},
			},
			Spec: core.PersistentVolumeSpec{
				Capacity:                      core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
				AccessModes:                   claim.Spec.AccessModes,
				VolumeMode:                    claim.Spec.VolumeMode,
				StorageClassName:              *claim.Spec.StorageClassName,
				PersistentVolumeReclaimPolicy: core.PersistentVolumeReclaimDelete,
				PersistentVolumeSource:        core.PersistentVolumeSource{HostPath: &core.HostPathVolumeSource{Path: path}},
				ClaimRef: &core.ObjectReference{
					APIVersion: "v1", Kind: "PersistentVolumeClaim",
					Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
				},
			},
		}
		if _, err := volumes.Create(ctx, volume, meta.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	list, err := volumes.List(ctx, meta.ListOptions{})
	if err != nil {
		return err
	}
	for _, volume := range list.Items {
		if volume.Status.Phase != core.VolumeReleased || volume.Annotations["pv.kubernetes.io/provisioned-by"] != provisionerName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(folder, volume.Name)); err != nil {
			return err
		}
		if err := volumes.Delete(ctx, volume.Name, meta.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
